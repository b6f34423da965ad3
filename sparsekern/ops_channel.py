"""The torch ops of whole outputs: schema, implementation, fake, autograd, FLOP count.

PyTorch multiplies or convolves with the kept rows alone, which are a smaller dense weight. Then each output is put in
its place among those that were dropped, which are ``activation(bias)`` whatever the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .layouts import Channel, Geometry, is_product, matrix_of, weight_of
from .ops import (
    APPLY,
    LIBRARY,
    Product,
    check_devices,
    check_linear,
    count_flops,
    differentiable,
    refuse_double_backward,
)
from .ops_conv import (
    GEOMETRY,
    ConvProduct,
    check_conv,
    check_geometry,
    count_conv_flops,
    layout_of,
    new_image,
    new_output,
)

LINE = 64
"""Bytes of a cache line, at which rows of the product begin: with others MKL takes up to a quarter longer."""

LIBRARY.define(
    "channel_linear(Tensor x, Tensor values, Tensor channels, Tensor? bias, int out_features, str activation) -> Tensor"
)
LIBRARY.define("channel_linear_grad_input(Tensor grad, Tensor values, Tensor channels) -> Tensor")
LIBRARY.define("channel_linear_grad_values(Tensor grad, Tensor x, Tensor values, Tensor channels) -> Tensor")
LIBRARY.define(
    f"channel_conv2d(Tensor x, Tensor values, Tensor channels, Tensor? bias, {GEOMETRY}, str activation) -> Tensor"
)
LIBRARY.define(
    f"channel_conv2d_grad_input(Tensor grad, Tensor x, Tensor values, Tensor channels, {GEOMETRY}) -> Tensor"
)
LIBRARY.define(
    f"channel_conv2d_grad_values(Tensor grad, Tensor x, Tensor values, Tensor channels, {GEOMETRY}) -> Tensor"
)


# ---- products ------------------------------------------------------------------------------------


@torch.library.impl(LIBRARY, "channel_linear", "CompositeExplicitAutograd")
def _linear(
    x: Tensor, values: Tensor, channels: Tensor, bias: Tensor | None, out_features: int, activation: str
) -> Tensor:
    inputs = values.shape[1]
    check_linear(x, values, bias, (out_features, inputs), activation, "sparsekern::channel_linear")
    y = _product(x.reshape(-1, inputs), values, channels, bias, out_features, activation)
    return y.view(*x.shape[:-1], out_features)


def _product(
    rows: Tensor, values: Tensor, channels: Tensor, bias: Tensor | None, out_features: int, activation: str
) -> Tensor:
    """``[tokens, out]``, contiguous, for rows ``[tokens, in]``."""
    kept, tokens = values.shape[0], rows.shape[0]
    with torch._C._DisableAutocast():
        if kept == out_features:
            return APPLY[activation](F.linear(rows, values, bias))
        products = APPLY[activation](_aligned(rows, values, _kept(bias, 0, channels)))
        y = _filled(rows.new_empty(tokens, out_features), bias, activation)
        return y.scatter_(1, channels.long().expand(tokens, -1), products)


def _aligned(rows: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """The product, each row of which begins at a cache line."""
    kept, tokens, line = values.shape[0], rows.shape[0], LINE // rows.element_size()
    if kept % line == 0 or tokens == 1:
        return F.linear(rows, values, bias)
    products = rows.new_empty(tokens, kept + -kept % line)[:, :kept]
    if bias is None:
        return torch.mm(rows, values.T, out=products)
    return torch.addmm(bias, rows, values.T, out=products)


def _filled(y: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``y``, whose outputs are the last dimension, with what a dropped output is."""
    return y.zero_() if bias is None else y.copy_(APPLY[activation](bias))


@torch.library.impl(LIBRARY, "channel_linear_grad_input", "CompositeExplicitAutograd")
def _linear_grad_input(grad: Tensor, values: Tensor, channels: Tensor) -> Tensor:
    with torch._C._DisableAutocast():
        return _kept(grad, -1, channels) @ values


@torch.library.impl(LIBRARY, "channel_linear_grad_values", "CompositeExplicitAutograd")
def _linear_grad_values(grad: Tensor, x: Tensor, values: Tensor, channels: Tensor) -> Tensor:
    kept = _kept(grad.reshape(-1, grad.shape[-1]), 1, channels)
    with torch._C._DisableAutocast():
        return kept.T @ x.reshape(-1, x.shape[-1])


@overload
def _kept(outputs: Tensor, dim: int, channels: Tensor) -> Tensor: ...
@overload
def _kept(outputs: Tensor | None, dim: int, channels: Tensor) -> Tensor | None: ...
def _kept(outputs: Tensor | None, dim: int, channels: Tensor) -> Tensor | None:
    """Those of the outputs along ``dim`` that are kept; None of a bias that is none."""
    if outputs is None or len(channels) == outputs.shape[dim]:
        return outputs
    return outputs.index_select(dim, channels)


# ---- convolutions --------------------------------------------------------------------------------


@torch.library.impl(LIBRARY, "channel_conv2d", "CompositeExplicitAutograd")
def _conv2d(x: Tensor, values: Tensor, channels: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *numbers, activation = rest
    geometry = _checked(numbers, "sparsekern::channel_conv2d")
    check_conv(x, values, bias, geometry, activation, "sparsekern::channel_conv2d")
    outputs, kept, layout = geometry.shape[0], len(values), layout_of(x)
    if is_product(geometry) and x.shape[2:] == (1, 1):
        y = _product(x.flatten(1), values, channels, bias, outputs, activation)
        return _laid_out(y[..., None, None], layout)
    if is_product(geometry) and layout == torch.channels_last:
        pixels = x.permute(0, 2, 3, 1)
        y = _product(pixels.reshape(-1, values.shape[1]), values, channels, bias, outputs, activation)
        return y.view(*pixels.shape[:-1], outputs).permute(0, 3, 1, 2)
    if kept == outputs:
        return _laid_out(_convolved(x, values, bias, geometry, activation), layout)
    y = new_output(x, geometry)
    y_pixels = _filled(y.permute(0, 2, 3, 1), bias, activation)
    if not kept:
        return y
    products, places = _convolved(x, values, _kept(bias, 0, channels), geometry, activation), channels.long()
    if layout == torch.contiguous_format:
        return y.index_copy_(1, places, products)
    rows = products.permute(0, 2, 3, 1).reshape(-1, kept)
    y_pixels.view(-1, outputs).scatter_(1, places.expand(len(rows), -1), rows)
    return y


def _laid_out(images: Tensor, layout: torch.memory_format) -> Tensor:
    """Images in a memory format, with the strides that new memory has, and that fakes say.

    Where a size is 1, images of PyTorch can have others and count as laid out like that all the same.
    """
    images = images.contiguous(memory_format=layout)
    if min(images.shape) > 1:
        return images
    return images.as_strided(images.shape, torch.empty(images.shape, device="meta", memory_format=layout).stride())


def _convolved(x: Tensor, values: Tensor, bias: Tensor | None, geometry: Geometry, activation: str) -> Tensor:
    """The kept outputs, in any memory format."""
    with torch._C._DisableAutocast():
        return APPLY[activation](F.conv2d(x, _weight(values, x, geometry), bias, *geometry[1:]))


def _checked(numbers: Sequence[Any], what: str) -> Geometry:
    geometry = Geometry(*numbers)
    check_geometry(geometry, what)
    if geometry.groups != 1:
        raise RuntimeError(f"{what}: expected one group, got {geometry.groups}, of which each may keep other numbers")
    return geometry


def _weight(values: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """The kept rows as the weight of a convolution of ``x``.

    As they lie in memory they are a channels-last weight, with which PyTorch brings the image to that format, and the
    output too. A contiguous image that is larger than the weight is better left as it is.
    """
    inputs, height, width = geometry.shape[1:]
    if height == width == 1 and layout_of(x) == torch.contiguous_format:
        return values.view(-1, inputs, 1, 1)
    down, right = geometry.output_size(x.shape[2:])
    if layout_of(x) == torch.channels_last or values.numel() > x.numel() + len(x) * len(values) * down * right:
        return values.view(-1, height, width, inputs).permute(0, 3, 1, 2)
    return weight_of(values, (height, width))


@torch.library.impl(LIBRARY, "channel_conv2d_grad_input", "CompositeExplicitAutograd")
def _conv2d_grad_input(grad: Tensor, x: Tensor, values: Tensor, channels: Tensor, *rest: Any) -> Tensor:
    geometry = _checked(rest, "sparsekern::channel_conv2d_grad_input")
    if not len(values):
        return new_image(x, x.shape).zero_()
    grad_x, _ = _backward(grad, x, values, channels, geometry, (True, False))
    return _laid_out(grad_x, layout_of(x))


@torch.library.impl(LIBRARY, "channel_conv2d_grad_values", "CompositeExplicitAutograd")
def _conv2d_grad_values(grad: Tensor, x: Tensor, values: Tensor, channels: Tensor, *rest: Any) -> Tensor:
    geometry = _checked(rest, "sparsekern::channel_conv2d_grad_values")
    if not len(values):
        return torch.empty_like(values)
    _, weight = _backward(grad, x, values, channels, geometry, (False, True))
    return matrix_of(weight).contiguous()


def _backward(
    grad: Tensor, x: Tensor, values: Tensor, channels: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    kept, weight = _kept(grad, 1, channels), _weight(values, x, geometry)
    numbers = (*geometry[1:4], False, [0, 0], geometry.groups)
    with torch._C._DisableAutocast():
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(kept, x, weight, None, *numbers, [*wanted, False])
    return grad_x, grad_weight


# ---- fakes ---------------------------------------------------------------------------------------


@torch.library.register_fake("sparsekern::channel_linear", lib=LIBRARY)
def _(x: Tensor, values: Tensor, channels: Tensor, bias: Tensor | None, out_features: int, activation: str) -> Tensor:
    check_devices(x, [values, channels], bias, "sparsekern::channel_linear")
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.register_fake("sparsekern::channel_linear_grad_input", lib=LIBRARY)
def _(grad: Tensor, values: Tensor, channels: Tensor) -> Tensor:
    check_devices(grad, [values, channels], None, "sparsekern::channel_linear_grad_input")
    return grad.new_empty(*grad.shape[:-1], values.shape[1])


@torch.library.register_fake("sparsekern::channel_linear_grad_values", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, values: Tensor, channels: Tensor) -> Tensor:
    check_devices(grad, [values, channels], x, "sparsekern::channel_linear_grad_values")
    return torch.empty_like(values)


@torch.library.register_fake("sparsekern::channel_conv2d", lib=LIBRARY)
def _(x: Tensor, values: Tensor, channels: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    check_devices(x, [values, channels], bias, "sparsekern::channel_conv2d")
    return new_output(x, Geometry(*rest[:5]))


@torch.library.register_fake("sparsekern::channel_conv2d_grad_input", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, values: Tensor, channels: Tensor, *rest: Any) -> Tensor:
    check_devices(grad, [values, channels], x, "sparsekern::channel_conv2d_grad_input")
    return new_image(x, x.shape)


@torch.library.register_fake("sparsekern::channel_conv2d_grad_values", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, values: Tensor, channels: Tensor, *rest: Any) -> Tensor:
    check_devices(grad, [values, channels], x, "sparsekern::channel_conv2d_grad_values")
    return torch.empty_like(values)


# ---- autograd ------------------------------------------------------------------------------------


class _ChannelLinear(Product):
    """``sparsekern::channel_linear``."""

    def __init__(self, out_features: int) -> None:
        self.out_features = out_features

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return torch.ops.sparsekern.channel_linear.default(x, *weight, bias, self.out_features, activation)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.channel_linear_grad_input.default(grad, *weight)

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.channel_linear_grad_values.default(grad, x, *weight)


class _ChannelConv(ConvProduct):
    """``sparsekern::channel_conv2d``."""

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return torch.ops.sparsekern.channel_conv2d.default(x, *weight, bias, *self.geometry, activation)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.channel_conv2d_grad_input.default(grad, x, *weight, *self.geometry)

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.channel_conv2d_grad_values.default(grad, x, *weight, *self.geometry)


def _autograd_linear(
    x: Tensor, values: Tensor, channels: Tensor, bias: Tensor | None, out_features: int, activation: str
) -> Tensor:
    return differentiable(_ChannelLinear(out_features), activation, x, bias, (values, channels))


def _autograd_conv2d(x: Tensor, values: Tensor, channels: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *numbers, activation = rest
    return differentiable(_ChannelConv(Channel().spec, Geometry(*numbers)), activation, x, bias, (values, channels))


LIBRARY.impl("channel_linear", _autograd_linear, "Autograd")
LIBRARY.impl("channel_conv2d", _autograd_conv2d, "Autograd")
for _op in ("linear", "conv2d"):
    for _of in ("input", "values"):
        torch.library.register_autograd(f"sparsekern::channel_{_op}_grad_{_of}", refuse_double_backward, lib=LIBRARY)


# ---- FLOP counts ---------------------------------------------------------------------------------


@register_flop_formula([torch.ops.sparsekern.channel_linear, torch.ops.sparsekern.channel_linear_grad_input])
def _(rows_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, **_: Any) -> int:
    return count_flops(rows_shape, values_shape)


@register_flop_formula(torch.ops.sparsekern.channel_linear_grad_values)
def _(grad_shape: Sequence[int], x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, **_: Any) -> int:
    return count_flops(grad_shape, values_shape)


@register_flop_formula(torch.ops.sparsekern.channel_conv2d)
def _(x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, out_shape: Sequence[int], **_: Any) -> int:
    return count_conv_flops(out_shape, values_shape)


@register_flop_formula(
    [torch.ops.sparsekern.channel_conv2d_grad_input, torch.ops.sparsekern.channel_conv2d_grad_values]
)
def _(grad_shape: Sequence[int], x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, **_: Any) -> int:
    return count_conv_flops(grad_shape, values_shape)
