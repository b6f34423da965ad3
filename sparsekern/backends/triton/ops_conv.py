"""The torch op of the Triton kernel of convolutions; what ``ops.py`` says of those of products holds for it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

from ...layouts import Block, Geometry
from ...ops import LIBRARY, block_spec, check_devices, differentiable
from ...ops_conv import ConvProduct, check_conv, check_geometry, count_conv_flops, layout_of, new_output
from . import ops
from .conv import conv_refusal
from .kernels.block_conv import block_conv2d_kernel
from .tiles import block_constants, block_tile

WHAT = "sparsekern::triton_block_conv2d"


@triton_op(WHAT, mutates_args=())
def triton_block_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Tensor:
    """``activation(conv2d(x, W) + bias)``, with the packed tensors of a ``Block`` for ``W``.

    An image that is not channels-last is copied to that order, and its output back.
    """
    geometry = Geometry(shape, stride, padding, dilation, groups)
    _check(x, values, bias, geometry, activation)
    (outputs, channels, _, kernel_width), (_, cols, rows) = shape, values.shape
    layout, images = layout_of(x), _channels_side_by_side(x)
    (batch, _, height, width), (out_height, out_width) = x.shape, geometry.output_size(x.shape[2:])
    y = x.new_empty(batch * out_height * out_width, outputs)
    pixels = y.shape[0]
    if y.numel():
        tile = block_tile(ops._capability(x.device), rows, pixels, x.element_size())
        with torch.cuda.device_of(x):
            wrap_triton(block_conv2d_kernel)[(triton.cdiv(outputs, tile.rows) * triton.cdiv(pixels, tile.tokens),)](
                images,
                values,
                columns,
                offsets,
                values if bias is None else bias.contiguous(),
                y,
                pixels,
                outputs,
                outputs // groups,
                height,
                width,
                out_height,
                out_width,
                images.stride(0),
                images.stride(2),
                images.stride(3),
                *stride,
                *padding,
                *dilation,
                CHANNELS=channels,
                KERNEL_WIDTH=kernel_width,
                **block_constants(tile, cols),
                HAS_BIAS=bias is not None,
                ACTIVATION=activation,
                INTERPRET=ops.INTERPRET,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
    made = y.view(batch, out_height, out_width, outputs).permute(0, 3, 1, 2)
    return made if layout == torch.channels_last else made.clone(memory_format=layout)


def _check(x: Tensor, values: Tensor, bias: Tensor | None, geometry: Geometry, activation: str) -> None:
    check_geometry(geometry, WHAT)
    check_conv(x, values, bias, geometry, activation, WHAT)
    if not (x.is_cuda or ops.INTERPRET):
        raise ValueError(f"{WHAT}: expected tensors on a CUDA device, got them on {x.device}")
    outputs, channels, height, width = geometry.shape
    block = Block(values.shape[2], values.shape[1])
    if refused := conv_refusal(block, (outputs, channels, height, width), geometry.groups):
        raise ValueError(f"{WHAT}: {refused}")


def _channels_side_by_side(x: Tensor) -> Tensor:
    """``x`` in the form in which the kernel loads 16 bytes at once: channels-last, pixels at multiples of 16."""
    fits = x.stride(1) == 1 and all(x.stride(dim) % 16 == 0 for dim in (0, 2, 3))
    # Not contiguous(), which lets an image of one pixel keep whatever strides it has.
    return x if fits else x.clone(memory_format=torch.channels_last)


@triton_block_conv2d.register_fake
def _(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    check_devices(x, [values, columns, offsets], bias, WHAT)
    return new_output(x, Geometry(*rest[:5]))


class _TritonConv(ConvProduct):
    """The op of this file, with the reference's gradients."""

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return torch.ops.sparsekern.triton_block_conv2d.default(x, *weight, bias, *self.geometry, activation)


def _autograd_block_conv2d(
    x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    product = _TritonConv(block_spec(values), Geometry(*rest[:5]))
    return differentiable(product, rest[5], x, bias, (values, columns, offsets))


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
    LIBRARY.impl("triton_block_conv2d", _autograd_block_conv2d, "Autograd", allow_override=True)


@register_flop_formula(torch.ops.sparsekern.triton_block_conv2d)
def _(x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, out_shape: Sequence[int], **_: Any) -> int:
    return count_conv_flops(out_shape, values_shape)
