"""The compiled CPU kernels of convolutions. Their table stands in ``csrc/cpu/conv_kernels.inc``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._native import native
from ..layouts import NM, Block, Geometry, Granularity, dtype_name, matrix_shape
from ..plan.convolutions import ConvCall, Convolutions, ConvRequest
from .formats import blocks_of, format_of, is_nm, refused_weight

CONV_OPS = {Block.kind: "block_conv2d", NM.kind: "nm_conv2d"}
"""The op of each format that has kernels."""

USUAL_SIDE = 28
"""Pixels of an image's side, where a report names a kernel and no image was seen."""

BAND = 16
"""Outputs that n:m of single rows stores together."""


class CpuConvolutions(Convolutions):
    """Convolutions with what :class:`CpuBackend` multiplies; their inputs are read at offsets, not copied out."""

    def conv_refusal(self, request: ConvRequest) -> str | None:
        outputs = request.shape[0]
        shape, _ = matrix_shape(request.shape)
        if refused := refused_weight(request.granularity, shape, request.dtype, request.device):
            return refused
        format_ = format_of(request.granularity)
        band = format_.rows if isinstance(format_, Block) else BAND
        if request.groups > 1 and outputs // request.groups % band:
            return f"groups of {outputs // request.groups} outputs, of which {band} are stored together"
        return None

    def conv_kernel_name(self, request: ConvRequest, call: ConvCall | None = None) -> str:
        format_ = format_of(request.granularity)
        assert format_ is not None
        call = call or _usual_call(request)
        inputs = matrix_shape(request.shape)[0][1]
        if isinstance(format_, Block):
            inputs += -inputs % format_.cols
        geometry = [number for numbers in call.geometry[:-1] for number in numbers] + [call.geometry.groups]
        channels_last = call.layout == torch.channels_last
        dtype = dtype_name(request.dtype)
        return native.choose_conv(format_.kind, format_.rows, inputs, call.images, channels_last, geometry, dtype)

    def conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        rest = (*geometry, activation, "")
        if is_nm(granularity):
            return torch.ops.sparsekern.nm_conv2d.default(x, *tensors, bias, granularity.n, granularity.m, *rest)
        return torch.ops.sparsekern.block_conv2d.default(x, *blocks_of(granularity, tensors), bias, *rest)


def _usual_call(request: ConvRequest) -> ConvCall:
    _, channels, height, width = request.shape
    geometry = Geometry(request.shape, (1, 1), (height // 2, width // 2), (1, 1), request.groups)
    return ConvCall((1, channels * request.groups, USUAL_SIDE, USUAL_SIDE), torch.contiguous_format, geometry)
