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

USUAL_IMAGE = 28 * 28
"""Pixels that a convolution of 1 x 1 is taken to have, where a report names its kernel."""

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
        kind, rows, dtype = format_.kind, format_.rows, dtype_name(request.dtype)
        if call is None:
            return native.choose_conv(kind, rows, USUAL_IMAGE if request.shape[2:] == (1, 1) else 1)
        if call.is_product:
            return native.choose(kind, rows, max(1, call.pixels), dtype)
        height, width = call.geometry.output_size(call.images[2:])
        # Beyond the end of a row lies what taps reach, so that rows are not side by side.
        return native.choose_conv(kind, rows, height * width if request.shape[3] == 1 else width)

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
