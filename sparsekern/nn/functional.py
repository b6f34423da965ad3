"""``sk.linear``: the product with a packed weight, on whichever back end serves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layouts import Granularity, PackedWeight
from ..ops import Product, check_linear, differentiable, needs_autograd
from ..plan import Backend, Request, select


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """``activation(x @ W.T + bias)`` with a packed ``W``.

    Args:
        x: ``[..., in]``, any leading dimensions, any strides, the weight's dtype and device. Under
            autocast it is cast to the weight's dtype, and the output has that dtype.
        packed: weight ``[out, in]`` from :func:`sparsekern.pack`.
        bias: ``[out]``, the weight's dtype and device.
        activation: None, ``"relu"``, ``"gelu"`` (exact) or ``"silu"``, fused into the kernel. Of an infinite sum,
            CPU kernels give the limit of gelu and silu (0 or infinity), where PyTorch may give NaN.

    Returns:
        ``[..., out]``, contiguous. Equal to the dense product of ``packed.to_dense()`` within the
        rounding of the dtype. A row of ``x`` with NaN or infinity affects its own outputs only: those with a weight
        for it, and with some kernels others too, as a dense product would.

    Raises:
        TypeError: ``packed`` is no packed weight, or ``x`` or ``bias`` has another dtype than the weight or is
            on another device.
        ValueError: the shape of ``x`` or ``bias`` does not fit, the activation is unknown, or ``packed`` is
            malformed.
    """
    activation = activation or "none"
    check_packed(packed, "linear")
    x = checked_input(x, packed.values, bias, packed.shape, activation, "linear")
    backend = select(Request(packed.granularity, packed.shape, packed.dtype, packed.device.type))
    return run_linear(backend, x, packed.granularity, packed.shape, packed.tensors, bias, activation)


def check_packed(packed: PackedWeight, what: str, convolution: bool = False) -> None:
    """Refuse what is no packed weight, and one put together by hand that is malformed: kernels trust its indices.

    Args:
        packed: to be a matrix, or the weight of a ``convolution``.
        what: what errors call the layer or function.
        convolution: which of them is expected.

    Raises:
        TypeError: not a :class:`PackedWeight`.
        ValueError: the other kind of weight; what :meth:`PackedWeight.verify` refuses.
    """
    if not isinstance(packed, PackedWeight):
        raise TypeError(
            f"{what}: packed: expected a PackedWeight, got {type(packed).__name__}; sparsekern.pack makes one"
        )
    if convolution != (packed.kernel is not None):
        expected, found = "[out, in]", "that of a convolution"
        if convolution:
            expected, found = "[out, in / groups, kh, kw]", "a matrix"
        raise ValueError(f"{what}: packed: expected a weight {expected}, got {found}, {list(packed.dense_shape)}")
    if not packed.verified:
        packed.verify(f"{what}: packed")


def checked_input(
    x: Tensor, values: Tensor, bias: Tensor | None, shape: tuple[int, int], activation: str, what: str
) -> Tensor:
    """``x`` as a back end may take it, or an error that names ``what``; see :func:`linear`."""
    # A kernel has one dtype. Autocast promises that dtypes need not be minded, so the input follows.
    if x.dtype != values.dtype and x.is_floating_point() and in_autocast(x):
        x = x.to(values.dtype)
    check_linear(x, values, bias, shape, activation, what)
    return x


def run_linear(
    backend: Backend,
    x: Tensor,
    granularity: Granularity,
    shape: tuple[int, int],
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    activation: str,
) -> Tensor:
    """Call ``backend.linear`` in the weight's own dtype, at the least cost that the grad mode allows."""
    if torch._C._is_any_autocast_enabled() and in_autocast(x):
        with torch.autocast(x.device.type, enabled=False):
            return backend.linear(x, granularity, shape, tensors, bias, activation)
    # Compilers and function transforms look for the op; inference mode has no autograd to go past.
    if (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._are_functorch_transforms_active()
    ):
        return backend.linear(x, granularity, shape, tensors, bias, activation)
    # The op's own autograd is Python behind the dispatcher, which takes as long as a small product.
    if not needs_autograd(x, bias, tensors[0]):
        with torch._C._AutoDispatchBelowAutograd():
            return backend.linear(x, granularity, shape, tensors, bias, activation)

    return differentiable(_Product(backend, granularity, shape), activation, x, bias, tensors)


class _Product(Product):
    """A back end's product with one weight, as ``ops.differentiable`` takes it."""

    def __init__(self, backend: Backend, granularity: Granularity, shape: tuple[int, int]) -> None:
        self.backend, self.granularity, self.shape = backend, granularity, shape

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return self.backend.linear(x, self.granularity, self.shape, weight, bias, activation)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return self.backend.grad_input(grad, self.granularity, self.shape, weight)

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return self.backend.grad_values(grad, x, self.granularity, self.shape, weight)


def in_autocast(x: Tensor) -> bool:
    """Whether dtypes need not be minded on the device of ``x``."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)
