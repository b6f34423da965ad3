"""The Triton kernels compiled for a GPU that need not be there, for people who read their code."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...layouts import NM, Block
from ...layouts.compressed import MAX_COLUMNS_16_BIT
from ...plan.registry import Request
from .kernels.block import block_linear_kernel
from .kernels.block_tma import block_linear_tma_kernel
from .kernels.nm import nm_linear_kernel
from .tiles import block_constants, block_tile, nm_constants, nm_tile, tma_tile

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def compiled(request: Request, tokens: int, capability: int) -> Any:
    """What ``triton.compile`` makes of the kernel for a product without bias and activation.

    Args:
        request: a weight that the back end serves.
        tokens: rows of the activation.
        capability: of the GPU, times ten, such as 90.
    """
    granularity, number = request.granularity, POINTERS[request.dtype]
    kernel: Any
    if isinstance(granularity, Block):
        (rows, cols), itemsize = (granularity.rows, granularity.cols), request.dtype.itemsize
        narrow = granularity.grid(request.shape)[1] <= MAX_COLUMNS_16_BIT
        by_tma = tma_tile(capability, rows, cols, (tokens, request.shape[0]), itemsize, "none") if narrow else None
        kernel = block_linear_kernel if by_tma is None else block_linear_tma_kernel
        tile = by_tma or block_tile(capability, rows, tokens, itemsize)
        constants: dict[str, Any] = {**block_constants(tile, cols)}
        pointers = {"columns": "*u8" if narrow else "*i32", "offsets": "*i32"}
    else:
        assert isinstance(granularity, NM)
        kernel = nm_linear_kernel
        tile = nm_tile(capability, granularity.m, tokens, request.dtype.itemsize)
        constants = {**nm_constants(tile, granularity.n, granularity.m)}
        pointers = {"positions": "*u8"}
    constants |= {"HAS_BIAS": False, "ACTIVATION": "none", "INTERPRET": False}
    pointers |= dict.fromkeys(("x", "values", "bias", "y"), number)
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    # As at a call: memory and rows begin at multiples of 16.
    multiples = [*pointers, "x_stride", *(["outputs"] if request.shape[0] % 16 == 0 else [])]
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in multiples}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    # What is only read need not stay in the user's cache of what runs.
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
