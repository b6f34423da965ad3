"""The Triton kernels as a back end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from ...layouts import NM, Block, Geometry, Granularity, dtype_name
from ...listings import Code, UnreadableError, triton_stages
from ...plan.convolutions import ConvRequest
from ...plan.registry import KernelRecord, Request
from ..gpu import GpuBackend
from .conv import conv_refusal
from .tiles import BLOCK_ROWS, MIN_BLOCK_COLS, MIN_CAPABILITY, MOST_M, MOST_M_FLOAT32

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_ELEMENTS = 2**31
"""Places within the weight are 32-bit numbers."""


class TritonBackend(GpuBackend):
    """Blocks and n:m on NVIDIA GPUs from sm_80 on.

    Gradients are the reference's. Nothing of Triton is imported before a request for a GPU.
    """

    name: ClassVar[str] = "triton"

    def kernels(self) -> list[KernelRecord]:
        dtypes = tuple(dtype_name(dtype) for dtype in DTYPES)
        runs_here = torch.cuda.is_available() and _device_refusal() is None
        isa = f"sm_{MIN_CAPABILITY}"
        return [
            KernelRecord(
                "triton_block", self.name, "triton_block_linear", Block.kind, dtypes, isa, runs_here, BLOCK_ROWS[0]
            ),
            KernelRecord(
                "triton_block_conv", self.name, "triton_block_conv2d", Block.kind, dtypes, isa, runs_here, BLOCK_ROWS[0]
            ),
            KernelRecord("triton_nm", self.name, "triton_nm_linear", NM.kind, dtypes, isa, runs_here),
        ]

    def refusal(self, request: Request) -> str | None:
        if torch.device(request.device).type != "cuda":
            return f"weight is on {request.device}"
        if request.dtype not in DTYPES:
            return f"no kernel for {request.dtype}"
        if request.shape[0] * request.shape[1] >= MOST_ELEMENTS:
            return "2^31 weights or more"
        return _layout_refusal(request.granularity, request.dtype) or _device_refusal()

    def missing(self, request: Request) -> str | None:
        if not torch.cuda.is_available() or find_spec("triton") is not None:
            return None
        served = request.dtype in DTYPES and _layout_refusal(request.granularity, request.dtype) is None
        return "pip install triton" if served else None

    def kernel_name(self, request: Request, tokens: int) -> str:
        return f"triton_{request.granularity.kind}"

    def product(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        if isinstance(granularity, NM):
            op = torch.ops.sparsekern.triton_nm_linear.default
            return op(x, *tensors, bias, granularity.n, granularity.m, *shape, activation)
        return torch.ops.sparsekern.triton_block_linear.default(x, *tensors, bias, *shape, activation)

    def window_refusal(self, granularity: Granularity, shape: Sequence[int], groups: int) -> str | None:
        return conv_refusal(granularity, shape, groups)

    def window_kernel_name(self, request: ConvRequest) -> str:
        return "triton_block_conv"

    def window_conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        return torch.ops.sparsekern.triton_block_conv2d.default(x, *tensors, bias, *geometry, activation)

    def code(self, kernel: str, request: Request, tokens: int, target: str | None) -> Code | None:
        served = request.dtype in DTYPES and _layout_refusal(request.granularity, request.dtype) is None
        if target is None or not served or find_spec("triton") is None:
            return None
        capability = int(target.removeprefix("sm_").rstrip("af"))
        if capability < MIN_CAPABILITY:
            raise UnreadableError(f"Triton kernels: expected sm_{MIN_CAPABILITY} or newer, got {target}")
        from .offline import compiled

        return triton_stages.kernel_code(
            kernel or self.kernel_name(request, tokens), compiled(request, tokens, capability)
        )


def _layout_refusal(granularity: Granularity, dtype: torch.dtype) -> str | None:
    """Why a layout is not served, if it is not."""
    if isinstance(granularity, Block):
        if granularity.rows not in BLOCK_ROWS:
            return f"blocks of {granularity.rows} rows, not of {', '.join(map(str, BLOCK_ROWS))}"
        if granularity.cols < MIN_BLOCK_COLS or not _is_power_of_two(granularity.cols):
            return f"blocks of {granularity.cols} columns, not of a power of two from {MIN_BLOCK_COLS} on"
        return None
    if isinstance(granularity, NM):
        if granularity.rows > 1:
            return f"{granularity.rows} rows share a choice, which makes blocks of 1 column"
        if not (_is_power_of_two(granularity.n) and _is_power_of_two(granularity.m)):
            return f"no kernel for {granularity.label}, but for powers of two"
        most = MOST_M_FLOAT32 if dtype == torch.float32 else MOST_M
        return None if granularity.m <= most else f"groups of more than {most} inputs"
    return f"no kernel for {granularity.label}"


@cache
def _device_refusal() -> str | None:
    """Why this machine does not run the kernels, if it does not; where it does, the ops are known to torch then."""
    if find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if torch.version.hip is not None:
        return "AMD GPUs"
    capability = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if 10 * capability[0] + capability[1] < MIN_CAPABILITY:
        return f"a GPU of compute capability {capability[0]}.{capability[1]}, below 8.0"
    return _import_ops()


def _import_ops() -> str | None:
    """Register the ops, or say why they cannot be."""
    try:
        from . import ops, ops_conv  # noqa: F401
    except Exception as error:  # whatever an unfit Triton raises, the next back end can do without it
        return f"Triton fails to import: {error}"
    return None


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
