"""The torch ops of convolutions: schema, reference implementation, fake, autograd, FLOP count.

``sparsekern::conv2d`` takes any granularity and is plain torch. ``sparsekern::block_conv2d`` and ``nm_conv2d`` are the
same function for one layout each; native code adds faster implementations of them and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .layouts import NM, Geometry, matrix_of, parse, weight_of
from .ops import (
    ACTIVATIONS,
    APPLY,
    LIBRARY,
    Product,
    block_spec,
    check_devices,
    differentiable,
    name_parts,
    refuse_double_backward,
    refuse_kernel,
)

CONV_ACTIVATIONS = (*ACTIVATIONS, "relu6", "hardswish")
"""Activations that are fused with a convolution."""


GEOMETRY = "int[] shape, int[] stride, int[] padding, int[] dilation, int groups"
"""What a :class:`Geometry` is in a schema."""

LIBRARY.define(
    f"conv2d(Tensor x, Tensor[] weight, Tensor? bias, str granularity, {GEOMETRY}, str activation) -> Tensor"
)
LIBRARY.define(
    f"block_conv2d(Tensor x, Tensor values, Tensor columns, Tensor offsets, Tensor? bias, {GEOMETRY},"
    " str activation, str kernel) -> Tensor"
)
LIBRARY.define(
    f"nm_conv2d(Tensor x, Tensor values, Tensor positions, Tensor? bias, int n, int m, {GEOMETRY},"
    " str activation, str kernel) -> Tensor"
)
LIBRARY.define(f"conv2d_grad_input(Tensor grad, Tensor x, Tensor[] weight, str granularity, {GEOMETRY}) -> Tensor")
LIBRARY.define(f"conv2d_grad_values(Tensor grad, Tensor x, Tensor[] weight, str granularity, {GEOMETRY}) -> Tensor")


def layout_of(x: Tensor) -> torch.memory_format:
    """The memory format of the output for an input ``[batch, channels, height, width]``: that of the input.

    Judged by the order of the strides, as convolutions of PyTorch do: a part of a channels-last image is such too,
    and what could be either is contiguous.
    """
    least = 1
    for dim in (1, 3, 2, 0):
        size, stride = x.shape[dim], x.stride(dim)
        if size == 0 or stride < least or (dim == 0 and least == x.stride(1)):
            return torch.contiguous_format
        least = stride * size
    return torch.channels_last


# ---- checks --------------------------------------------------------------------------------------


def check_geometry(geometry: Geometry, what: str) -> None:
    """Refuse integers with which no convolution can be computed, whatever its input.

    Raises:
        RuntimeError: as ``torch.nn.functional.conv2d`` does.
    """
    shape, stride, padding, dilation, groups = geometry
    for name, found, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(found) != 2 or min(found) < least:
            raise RuntimeError(f"{what}: expected two integers >= {least} as {name}, got {list(found)}")
    if groups < 1 or shape[0] % groups:
        raise RuntimeError(f"{what}: expected groups > 0 that divide the {shape[0]} outputs, got {groups}")


def check_conv(x: Tensor, values: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, what: str) -> None:
    """Refuse arguments that do not fit a packed weight; what :func:`check_geometry` checks is taken for granted.

    Args:
        x: the input, to be ``[batch, channels, height, width]``.
        values: the packed tensor with the weights.
        bias: to be ``[out]``, or None.
        geometry: of the convolution.
        activation: to be one of ``CONV_ACTIVATIONS``.
        what: what errors call the layer or function.

    Raises:
        RuntimeError: the input or the bias does not fit; ``torch.nn.functional.conv2d`` raises it too.
        ValueError: the activation is unknown.
    """
    check_image(x, values, geometry, what)
    check_epilogue(values, bias, geometry, activation, what)
    check_size(x, geometry, what)


def check_image(x: Tensor, values: Tensor, geometry: Geometry, what: str) -> None:
    """The part of :func:`check_conv` on the input, but for its size."""
    _check_like(x, values, "an input", what)
    channels = geometry.shape[1] * geometry.groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise RuntimeError(
            f"{what}: expected an input [batch, {channels}, height, width] or [{channels}, height, width], "
            f"got {list(x.shape)}"
        )


def check_size(x: Tensor, geometry: Geometry, what: str) -> None:
    """Refuse images that have no pixels, or fewer than the kernel with its padding."""
    batch, _, height, width = x.shape
    if min(geometry.output_size((height, width))) <= 0 or (batch > 0 and min(height, width) == 0):
        raise RuntimeError(
            f"{what}: expected an input of pixels that the kernel {list(geometry.shape[2:])} with padding "
            f"{list(geometry.padding)} and dilation {list(geometry.dilation)} fits into, got {height} x {width} pixels"
        )


def check_epilogue(values: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, what: str) -> None:
    """The part of :func:`check_conv` on what does not depend on the input."""
    if bias is not None:
        _check_like(bias, values, "a bias", what)
        outputs = geometry.shape[0]
        if bias.shape != (outputs,):
            raise RuntimeError(f"{what}: expected a bias of shape [{outputs}], got {list(bias.shape)}")
    if activation not in CONV_ACTIVATIONS:
        raise ValueError(f"{what}: expected an activation of {', '.join(CONV_ACTIVATIONS)}, got {activation!r}")


def _check_like(tensor: Tensor, values: Tensor, name: str, what: str) -> None:
    if tensor.dtype != values.dtype or tensor.device != values.device:
        raise RuntimeError(
            f"{what}: expected {name} of {values.dtype} on {values.device} like the weight, "
            f"got {tensor.dtype} on {tensor.device}"
        )


# ---- reference implementations ------------------------------------------------------------------


@torch.library.impl(LIBRARY, "conv2d", "CompositeExplicitAutograd")
def _conv2d(
    x: Tensor,
    weight: list[Tensor],
    bias: Tensor | None,
    granularity: str,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Tensor:
    geometry = Geometry(shape, stride, padding, dilation, groups)
    check_geometry(geometry, "sparsekern::conv2d")
    check_conv(x, weight[0], bias, geometry, activation, "sparsekern::conv2d")
    layout = layout_of(x)
    dense = _unpacked(weight, granularity, shape).contiguous(memory_format=layout)
    with torch._C._DisableAutocast():
        y = APPLY[activation](F.conv2d(x, dense, bias, stride, padding, dilation, groups))
    return y.contiguous(memory_format=layout)


def _unpacked(weight: Sequence[Tensor], granularity: str, shape: Sequence[int]) -> Tensor:
    """The dense weight of the shape."""
    layout = parse(granularity)
    matrix = layout.unpack(name_parts(layout, weight), (shape[0], math.prod(shape[1:])))
    return weight_of(matrix, (shape[2], shape[3]))


@torch.library.impl(LIBRARY, "block_conv2d", "CompositeExplicitAutograd")
def _block_conv2d(
    x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    *numbers, kernel = rest
    refuse_kernel(kernel, x, "sparsekern::block_conv2d")
    return _conv2d(x, [values, columns, offsets], bias, block_spec(values), *numbers)


@torch.library.impl(LIBRARY, "nm_conv2d", "CompositeExplicitAutograd")
def _nm_conv2d(x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, *rest: Any) -> Tensor:
    *numbers, kernel = rest
    refuse_kernel(kernel, x, "sparsekern::nm_conv2d")
    return _conv2d(x, [values, positions], bias, NM(n, m).spec, *numbers)


@torch.library.impl(LIBRARY, "conv2d_grad_input", "CompositeExplicitAutograd")
def _conv2d_grad_input(
    grad: Tensor, x: Tensor, weight: list[Tensor], granularity: str, shape: list[int], *rest: Any
) -> Tensor:
    dense = _unpacked(weight, granularity, shape)
    grad_x, _, _ = _backward(grad, x, dense, rest, [True, False, False])
    return grad_x.contiguous(memory_format=layout_of(x))


@torch.library.impl(LIBRARY, "conv2d_grad_values", "CompositeExplicitAutograd")
def _conv2d_grad_values(
    grad: Tensor, x: Tensor, weight: list[Tensor], granularity: str, shape: list[int], *rest: Any
) -> Tensor:
    # Of the weight only the shape counts.
    _, dense, _ = _backward(grad, x, x.new_empty(shape), rest, [False, True, False])
    layout = parse(granularity)
    return layout.gather(matrix_of(dense), name_parts(layout, weight))


def _backward(
    grad: Tensor, x: Tensor, dense: Tensor, rest: Sequence[Any], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups = rest
    with torch._C._DisableAutocast():
        return torch.ops.aten.convolution_backward(
            grad, x, dense, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )


# ---- fakes ---------------------------------------------------------------------------------------


@torch.library.register_fake("sparsekern::conv2d", lib=LIBRARY)
def _(x: Tensor, weight: list[Tensor], bias: Tensor | None, granularity: str, *rest: Any) -> Tensor:
    return _fake(x, weight, bias, rest, "sparsekern::conv2d")


@torch.library.register_fake("sparsekern::block_conv2d", lib=LIBRARY)
def _(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return _fake(x, [values, columns, offsets], bias, rest, "sparsekern::block_conv2d")


@torch.library.register_fake("sparsekern::nm_conv2d", lib=LIBRARY)
def _(x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, *rest: Any) -> Tensor:
    return _fake(x, [values, positions], bias, rest, "sparsekern::nm_conv2d")


def _fake(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, rest: Sequence[Any], what: str) -> Tensor:
    check_devices(x, weight, bias, what)
    return new_output(x, Geometry(*rest[:5]))


def new_output(x: Tensor, geometry: Geometry) -> Tensor:
    """Memory for the output of a convolution of ``x``, in its memory format."""
    return new_image(x, (x.shape[0], geometry.shape[0], *geometry.output_size(x.shape[2:])))


def new_image(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for images in the memory format of ``x``."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))


@torch.library.register_fake("sparsekern::conv2d_grad_input", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, weight: list[Tensor], *rest: Any) -> Tensor:
    check_devices(grad, weight, x, "sparsekern::conv2d_grad_input")
    return new_image(x, x.shape)


@torch.library.register_fake("sparsekern::conv2d_grad_values", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, weight: list[Tensor], *rest: Any) -> Tensor:
    check_devices(grad, weight, x, "sparsekern::conv2d_grad_values")
    return torch.empty_like(weight[0])


# ---- autograd ------------------------------------------------------------------------------------


class ConvProduct(Product):
    """A convolution as autograd sees it; its gradients are the reference's unless a back end has faster ones.

    Args:
        granularity: layout of the weight, as text.
        geometry: of the convolution.
    """

    def __init__(self, granularity: str, geometry: Geometry) -> None:
        self.granularity, self.geometry = granularity, geometry

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return torch.ops.sparsekern.conv2d.default(x, weight, bias, self.granularity, *self.geometry, activation)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.conv2d_grad_input.default(grad, x, weight, self.granularity, *self.geometry)

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.conv2d_grad_values.default(grad, x, weight, self.granularity, *self.geometry)

    def grad_bias(self, grad: Tensor) -> Tensor:
        return grad.sum((0, 2, 3))


class _FormatConv(ConvProduct):
    """``sparsekern::block_conv2d`` or ``nm_conv2d``.

    Args:
        name: of the op.
        numbers: the op's integers that follow the tensors, before those of the geometry.
        kernel: the kernel that the call names.
    """

    def __init__(self, name: str, granularity: str, numbers: tuple[int, ...], geometry: Geometry, kernel: str) -> None:
        super().__init__(granularity, geometry)
        self.name, self.numbers, self.kernel = name, numbers, kernel

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        op = getattr(torch.ops.sparsekern, self.name).default
        return op(x, *weight, bias, *self.numbers, *self.geometry, activation, self.kernel)


# ``rest`` is the geometry, the activation and, where there are some, the kernel.
def _autograd_conv2d(x: Tensor, weight: list[Tensor], bias: Tensor | None, granularity: str, *rest: Any) -> Tensor:
    return differentiable(ConvProduct(granularity, Geometry(*rest[:5])), rest[5], x, bias, weight)


def _autograd_block_conv2d(
    x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    product = _FormatConv("block_conv2d", block_spec(values), (), Geometry(*rest[:5]), rest[6])
    return differentiable(product, rest[5], x, bias, (values, columns, offsets))


def _autograd_nm_conv2d(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, *rest: Any
) -> Tensor:
    product = _FormatConv("nm_conv2d", NM(n, m).spec, (n, m), Geometry(*rest[:5]), rest[6])
    return differentiable(product, rest[5], x, bias, (values, positions))


LIBRARY.impl("conv2d", _autograd_conv2d, "Autograd")
LIBRARY.impl("block_conv2d", _autograd_block_conv2d, "Autograd")
LIBRARY.impl("nm_conv2d", _autograd_nm_conv2d, "Autograd")
for _of in ("input", "values"):
    torch.library.register_autograd(f"sparsekern::conv2d_grad_{_of}", refuse_double_backward, lib=LIBRARY)


# ---- FLOP counts ---------------------------------------------------------------------------------


@register_flop_formula(torch.ops.sparsekern.conv2d)
def _(
    x_shape: Sequence[int], weight_shapes: Sequence[Sequence[int]], *rest: Any, out_shape: Sequence[int], **_: Any
) -> int:
    return count_conv_flops(out_shape, weight_shapes[0])


@register_flop_formula([torch.ops.sparsekern.block_conv2d, torch.ops.sparsekern.nm_conv2d])
def _(x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, out_shape: Sequence[int], **_: Any) -> int:
    return count_conv_flops(out_shape, values_shape)


@register_flop_formula([torch.ops.sparsekern.conv2d_grad_input, torch.ops.sparsekern.conv2d_grad_values])
def _(
    grad_shape: Sequence[int], x_shape: Sequence[int], weight_shapes: Sequence[Sequence[int]], *rest: Any, **_: Any
) -> int:
    return count_conv_flops(grad_shape, weight_shapes[0])


def count_conv_flops(output_shape: Sequence[int], values_shape: Sequence[int]) -> int:
    """Two operations for each stored weight and pixel of the output ``[batch, out, height, width]``."""
    return 2 * output_shape[0] * math.prod(output_shape[2:]) * math.prod(values_shape)
