"""The torch ops of products: schema, reference implementation, fake, autograd, FLOP count.

``sparsekern::linear`` takes any granularity and is plain torch. ``sparsekern::block_linear`` and ``nm_linear`` are
the same function for one layout each; native code adds faster implementations of them and nothing else. Their
gradients are ops too, in ``ops_grad.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from .layouts import NM, Block, Granularity, parse

ACTIVATIONS = ("none", "relu", "gelu", "silu")
"""Fused activations; ``gelu`` is the exact one (erf), as ``torch.nn.functional.gelu``."""

LIBRARY = torch.library.Library("sparsekern", "DEF")
LIBRARY.define(
    "linear(Tensor x, Tensor[] weight, Tensor? bias, str granularity, int out_features, int in_features,"
    " str activation) -> Tensor"
)
LIBRARY.define(
    "block_linear(Tensor x, Tensor values, Tensor columns, Tensor offsets, Tensor? bias,"
    " int out_features, int in_features, str activation, str kernel) -> Tensor"
)
LIBRARY.define(
    "nm_linear(Tensor x, Tensor values, Tensor positions, Tensor? bias, int n, int m,"
    " int out_features, int in_features, str activation, str kernel) -> Tensor"
)


def name_parts(granularity: Granularity, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The packed tensors by their names."""
    return dict(zip(granularity.part_names, tensors, strict=True))


APPLY: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
}
"""What each activation computes, those of convolutions included."""


def check_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, shape: tuple[int, int], activation: str, what: str
) -> None:
    """Refuse arguments that do not fit a packed weight.

    Args:
        x: the input, to be ``[..., in]``.
        values: the packed tensor with the weights.
        bias: to be ``[out]``, or None.
        shape: ``(out, in)``.
        activation: to be one of ``ACTIVATIONS``.
        what: what errors call the layer or function.

    Raises:
        TypeError: the input or the bias has another dtype than the values, or is on another device.
        ValueError: the input or the bias has another shape, or the activation is unknown.
    """
    _check_device(x, values.device, "an input", what)
    if bias is not None:
        _check_device(bias, values.device, "a bias", what)
    dtype = values.dtype
    if x.dtype != dtype:
        raise TypeError(f"{what}: expected an input of {dtype} like the weight, got {x.dtype}; cast one of them")
    if x.dim() == 0 or x.shape[-1] != shape[1]:
        raise ValueError(f"{what}: expected an input [..., {shape[1]}], got {list(x.shape)}")
    if bias is not None and (bias.dtype != dtype or bias.shape != (shape[0],)):
        kind = TypeError if bias.dtype != dtype else ValueError
        raise kind(f"{what}: expected a bias of {dtype} and shape [{shape[0]}], got {bias.dtype} {list(bias.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{what}: expected an activation of {', '.join(ACTIVATIONS)}, got {activation!r}")


def _check_device(tensor: Tensor, device: torch.device, name: str, what: str) -> None:
    if tensor.device != device:
        raise TypeError(f"{what}: expected {name} on {device} like the weight, got {tensor.device}; move one of them")


def check_devices(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, what: str) -> None:
    """Raise ``TypeError`` naming ``what`` unless all tensors are where the values are."""
    for name, tensor in (("an input", x), ("a bias", bias), *(("all packed tensors", part) for part in weight[1:])):
        if tensor is not None:
            _check_device(tensor, weight[0].device, name, what)


# ---- reference implementations ------------------------------------------------------------------

# An op computes in the dtype of its tensors, as its fake and its kernels do: autocast is for those who call it.


@torch.library.impl(LIBRARY, "linear", "CompositeExplicitAutograd")
def _linear(
    x: Tensor,
    weight: list[Tensor],
    bias: Tensor | None,
    granularity: str,
    out_features: int,
    in_features: int,
    activation: str,
) -> Tensor:
    check_linear(x, weight[0], bias, (out_features, in_features), activation, "sparsekern::linear")
    layout = parse(granularity)
    dense = layout.unpack(name_parts(layout, weight), (out_features, in_features))
    with torch._C._DisableAutocast():
        return APPLY[activation](F.linear(x, dense, bias))


@torch.library.impl(LIBRARY, "block_linear", "CompositeExplicitAutograd")
def _block_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    activation: str,
    kernel: str,
) -> Tensor:
    refuse_kernel(kernel, x, "sparsekern::block_linear")
    spec = block_spec(values)
    return _linear(x, [values, columns, offsets], bias, spec, out_features, in_features, activation)


@torch.library.impl(LIBRARY, "nm_linear", "CompositeExplicitAutograd")
def _nm_linear(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    out_features: int,
    in_features: int,
    activation: str,
    kernel: str,
) -> Tensor:
    refuse_kernel(kernel, x, "sparsekern::nm_linear")
    return _linear(x, [values, positions], bias, NM(n, m).spec, out_features, in_features, activation)


def refuse_kernel(kernel: str, x: Tensor, what: str) -> None:
    """Raise ``ValueError`` if a call names a kernel: here there is none."""
    if kernel:
        raise ValueError(f"{what}: kernel {kernel!r} does not run on {x.device} with {x.dtype}")


def block_spec(values: Tensor) -> str:
    """The ``Block`` whose packed values these are, as text."""
    # int: under dynamic tracing the sides are symbols, and the layout is no place for those.
    return Block(rows=int(values.shape[2]), cols=int(values.shape[1])).spec


# ---- fakes ---------------------------------------------------------------------------------------


# One tensor on meta is enough to be sent here, so the devices are checked here too: with an input that has
# memory, what these return would be uninitialised numbers.
@torch.library.register_fake("sparsekern::linear", lib=LIBRARY)
def _(x: Tensor, weight: list[Tensor], bias: Tensor | None, granularity: str, out_features: int, *rest: Any) -> Tensor:
    check_devices(x, weight, bias, "sparsekern::linear")
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.register_fake("sparsekern::block_linear", lib=LIBRARY)
def _(
    x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, out_features: int, *rest: Any
) -> Tensor:
    check_devices(x, [values, columns, offsets], bias, "sparsekern::block_linear")
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.register_fake("sparsekern::nm_linear", lib=LIBRARY)
def _(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    out_features: int,
    *rest: Any,
) -> Tensor:
    check_devices(x, [values, positions], bias, "sparsekern::nm_linear")
    return x.new_empty(*x.shape[:-1], out_features)


# ---- autograd ------------------------------------------------------------------------------------


class Product(ABC):
    """A product with a packed weight and its gradients, each computed by ops below their own autograd.

    ``grad`` is that of the product before its activation.
    """

    @abstractmethod
    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        """``activation(x @ W.T + bias)``, ``[..., out]``."""

    @abstractmethod
    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        """``grad @ W``, ``[..., in]``, of the shape of ``x``."""

    @abstractmethod
    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        """``grad.T @ x`` at the kept places, of the shape of ``weight[0]``; zero in its padding."""

    def grad_bias(self, grad: Tensor) -> Tensor:
        """``grad`` summed over all but the outputs, ``[out]``."""
        return grad.reshape(-1, grad.shape[-1]).sum(0)


def _grad_before_activation(grad: Tensor, y: Tensor, activation: str) -> Tensor:
    """Gradient with respect to ``y``, the output before the activation, from that after it."""
    if activation == "relu":
        # Not a product with 0 or 1, which makes NaN of an infinite gradient that the unit does not pass on.
        return torch.ops.aten.threshold_backward(grad, y, 0)
    if activation == "relu6":
        return torch.ops.aten.hardtanh_backward(grad, y, 0, 6)
    if activation == "hardswish":
        return torch.ops.aten.hardswish_backward(grad, y)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, y)
    return torch.ops.aten.silu_backward(grad, y)


class _Differentiable(torch.autograd.Function):
    """``product.forward`` with its gradients."""

    @staticmethod
    def forward(ctx: Any, product: Product, activation: str, x: Tensor, bias: Tensor | None, *weight: Tensor) -> Tensor:
        ctx.product, ctx.activation = product, activation
        with torch._C._AutoDispatchBelowAutograd():
            y = product.forward(x, weight, bias, activation)
        # Where they pass a gradient on, the output of these is their input, which the others do not give back.
        ctx.save_for_backward(x, bias, y if activation in ("relu", "relu6") else None, *weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, y, *weight = ctx.saved_tensors
        product, activation = ctx.product, ctx.activation
        (grad,) = grads
        if activation != "none":
            if y is None:
                # Recomputed: saved, it would take as much memory as the output itself.
                with torch._C._AutoDispatchBelowAutograd():
                    y = product.forward(x, weight, bias, "none")
            grad = _grad_before_activation(grad, y, activation)
        _, _, want_x, want_bias, want_values, *rest = ctx.needs_input_grad
        grad_x = product.grad_input(grad, x, weight) if want_x else None
        grad_bias = product.grad_bias(grad) if want_bias else None
        grad_values = product.grad_values(grad, x, weight) if want_values else None
        return None, None, grad_x, grad_bias, grad_values, *(None for _ in rest)


# Registered by hand: torch.library.register_autograd binds every argument to the schema and flattens every list at
# each call, which takes several times as long as a small product.
class _Linear(Product):
    """``sparsekern::linear`` as a :class:`Product`."""

    def __init__(self, granularity: str, out_features: int, in_features: int) -> None:
        self.rest = (granularity, out_features, in_features)

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return torch.ops.sparsekern.linear.default(x, weight, bias, *self.rest, activation)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.linear_grad_input.default(grad, weight, *self.rest)

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.linear_grad_values.default(grad, x, weight, *self.rest)


def _autograd_linear(
    x: Tensor,
    weight: list[Tensor],
    bias: Tensor | None,
    granularity: str,
    out_features: int,
    in_features: int,
    activation: str,
) -> Tensor:
    return differentiable(_Linear(granularity, out_features, in_features), activation, x, bias, weight)


class _FormatLinear(Product):
    """``sparsekern::block_linear`` or ``nm_linear`` as a :class:`Product`.

    Args:
        name: of the op; its gradients are ``<name>_grad_input`` and ``<name>_grad_values``.
        numbers: the op's integers, which follow the tensors.
        kernel: the kernel that the call names; of the gradients the best is taken.
    """

    def __init__(self, name: str, numbers: tuple[int, ...], kernel: str) -> None:
        self.name, self.numbers, self.kernel = name, numbers, kernel

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        op = getattr(torch.ops.sparsekern, self.name).default
        return op(x, *weight, bias, *self.numbers, activation, self.kernel)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return format_grad_input(self.name, grad, weight, self.numbers)

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return format_grad_values(self.name, grad, x, weight, self.numbers)


def format_grad_input(name: str, grad: Tensor, weight: Sequence[Tensor], numbers: tuple[int, ...]) -> Tensor:
    """The gradient ``[..., in]`` of the input of ``sparsekern::<name>``, given its tensors and integers."""
    op = getattr(torch.ops.sparsekern, f"{name}_grad_input").default
    return _widened(lambda grad, values: op(grad, values, *weight[1:], *numbers, ""), grad, weight[0])


def format_grad_values(
    name: str, grad: Tensor, x: Tensor, weight: Sequence[Tensor], numbers: tuple[int, ...]
) -> Tensor:
    """The gradient of the values of ``sparsekern::<name>``, given its tensors and integers."""
    op = getattr(torch.ops.sparsekern, f"{name}_grad_values").default
    return _widened(lambda grad, x, values: op(grad, x, values, *weight[1:], *numbers, ""), grad, x, weight[0])


def _widened(product: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """On a CPU bfloat16 has no kernels of gradients: it is summed in float32, for which there are, and rounded once."""
    if tensors[0].dtype != torch.bfloat16 or tensors[0].device.type != "cpu":
        return product(*tensors)
    return product(*(tensor.float() for tensor in tensors)).bfloat16()


# ``rest`` is (out_features, in_features, activation, kernel).
def _autograd_block_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> Tensor:
    product = _FormatLinear("block_linear", rest[:2], rest[3])
    return differentiable(product, rest[2], x, bias, (values, columns, offsets))


def _autograd_nm_linear(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    *rest: Any,
) -> Tensor:
    product = _FormatLinear("nm_linear", (n, m, *rest[:2]), rest[3])
    return differentiable(product, rest[2], x, bias, (values, positions))


LIBRARY.impl("linear", _autograd_linear, "Autograd")
LIBRARY.impl("block_linear", _autograd_block_linear, "Autograd")
LIBRARY.impl("nm_linear", _autograd_nm_linear, "Autograd")


def differentiable(
    product: Product, activation: str, x: Tensor, bias: Tensor | None, weight: Sequence[Tensor]
) -> Tensor:
    """``product.forward`` without the autograd of what it calls, but with our gradients if any is wanted."""
    if needs_autograd(x, bias, weight[0]):
        return _Differentiable.apply(product, activation, x, bias, *weight)  # type: ignore[no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return product.forward(x, weight, bias, activation)


def needs_autograd(x: Tensor, bias: Tensor | None, values: Tensor) -> bool:
    """Whether a product is to be differentiated."""
    if torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return True
    # Forward mode is refused by autograd; below it the tangents would silently be lost.
    return forward_ad._current_level >= 0


def refuse_double_backward(ctx: Any, *grads: Tensor) -> None:
    """The gradient of an op that is itself one."""
    raise NotImplementedError("sparsekern: no second derivatives; call densify_ first if you need them")


# ---- FLOP counts ---------------------------------------------------------------------------------


@register_flop_formula(torch.ops.sparsekern.linear)
def _(x_shape: Sequence[int], weight_shapes: Sequence[Sequence[int]], *rest: Any, **kwargs: Any) -> int:
    return count_flops(x_shape, weight_shapes[0])


@register_flop_formula([torch.ops.sparsekern.block_linear, torch.ops.sparsekern.nm_linear])
def _(x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, **kwargs: Any) -> int:
    return count_flops(x_shape, values_shape)


def count_flops(rows_shape: Sequence[int], values_shape: Sequence[int]) -> int:
    """Two operations for each stored weight and token, padding included: what a product with them takes."""
    return 2 * math.prod(rows_shape[:-1]) * math.prod(values_shape)
