"""The compiled CUDA kernels. The table itself stands in ``csrc/cuda/kernels.inc``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from .._native import CUDA_LIBRARY, cuda_refusal, load_cuda, native
from ..layouts import NM, Block, Geometry, Granularity
from ..layouts.compressed import MAX_COLUMNS_16_BIT
from ..listings import Code, nvidia
from ..ops import format_grad_input, format_grad_values
from ..plan.convolutions import ConvRequest
from ..plan.registry import KernelRecord, Request
from .gpu import GpuBackend
from .gpu_conv import MANY_PIXELS, described

DTYPES = (torch.bfloat16, torch.float16)
OLDEST = (8, 0)
"""Compute capability from which on the kernels run."""

SIDE = 16
"""Sides of blocks are multiples of this: what a tensor core multiplies at once."""


class CudaBackend(GpuBackend):
    """Blocks and 2:4 in 16 bits on the tensor cores of NVIDIA GPUs, sums in float32."""

    name: ClassVar[str] = "cuda"

    def kernels(self) -> list[KernelRecord]:
        return list(_table(torch.cuda.is_available() and device_refusal() is None)) if native else []

    def refusal(self, request: Request) -> str | None:
        if request.device != "cuda":
            return f"weight is on {request.device}"
        if reason := device_refusal():
            return reason
        if request.dtype not in DTYPES:
            return f"no kernel for {request.dtype}; bfloat16 and float16 have them"
        return _refused_format(request)

    def missing(self, request: Request) -> str | None:
        if not torch.cuda.is_available() or load_cuda() is None:
            return None
        if request.dtype not in DTYPES or _refused_format(request):
            return None
        return "install a CUDA toolkit, 12.5 or newer, and then sparsekern again (python -m sparsekern doctor)"

    def kernel_name(self, request: Request, tokens: int) -> str:
        return self._first_line(f"{request.granularity.kind}_linear", request.granularity, tokens)

    def _first_line(self, op: str, granularity: Granularity, tokens: int) -> str:
        rows = granularity.rows if isinstance(granularity, Block) else 1
        # The op launches nothing for an input without tokens.
        fits = (
            record.name
            for record in self.kernels()
            if record.op == op and record.takes_rows(rows) and _covers(record, max(1, tokens))
        )
        return next(fits)

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
            return torch.ops.sparsekern.nm_linear.default(
                x, *tensors, bias, granularity.n, granularity.m, *shape, activation, ""
            )
        return torch.ops.sparsekern.block_linear.default(x, *tensors, bias, *shape, activation, "")

    def window_refusal(self, granularity: Granularity, shape: Sequence[int], groups: int) -> str | None:
        if not isinstance(granularity, Block):
            return f"no kernel for {described(shape, groups)} with {granularity.label}; blocks have them"
        if groups > 1:
            return f"no kernel for {described(shape, groups)}, but for one"
        if shape[1] % SIDE:
            return f"{shape[1]} channels are no multiple of {SIDE}"
        return None

    def window_kernel_name(self, request: ConvRequest) -> str:
        return self._first_line("block_conv2d", request.granularity, MANY_PIXELS)

    def window_conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        return torch.ops.sparsekern.block_conv2d.default(x, *tensors, bias, *geometry, activation, "")

    def grad_input(
        self, grad: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        if isinstance(granularity, NM):
            # The transpose of 2:4 is not 2:4: a dense product.
            return super().grad_input(grad, granularity, shape, tensors)
        return format_grad_input("block_linear", grad, tensors, shape)

    def grad_values(
        self, grad: Tensor, x: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        if isinstance(granularity, NM):
            return super().grad_values(grad, x, granularity, shape, tensors)
        return format_grad_values("block_linear", grad, x, tensors, shape)

    def code(self, kernel: str, request: Request, tokens: int, target: str | None) -> Code | None:
        if target is None or not CUDA_LIBRARY.exists() or request.dtype not in DTYPES or _refused_format(request):
            return None
        kernel = kernel or self.kernel_name(request, tokens)
        return nvidia.kernel_code(kernel, CUDA_LIBRARY, _function_of(kernel, request.dtype, tokens), target)


def _function_of(kernel: str, dtype: torch.dtype, tokens: int) -> str:
    """Pattern of the demangled name of the function that a line of the table launches."""
    family, _, height = kernel.rpartition("_h")
    number = "BFloat16" if dtype is torch.bfloat16 else "Float16"
    token_tiles = 1 if tokens <= 8 else 2
    function, *arguments = {
        "block": ("block_linear", height, "false"),
        "block_grad_input": ("block_linear", height, "true"),
        "block_conv": ("block_conv", height),
        "block_decode": ("block_decode", height, token_tiles),
        "block_grad_values": ("grad_values", height),
    }.get(family, ("nm_decode", token_tiles) if kernel.endswith("decode") else ("nm_linear",))
    # c++filt writes numbers as they are, or with a cast.
    values = "".join(rf", (?:\(\w+\))?{_cast(argument)}" for argument in arguments)
    return rf"\b{function}<sparsekern::ptx::{number}{values}>"


def _cast(argument: object) -> str:
    return {"false": "(?:false|0)", "true": "(?:true|1)"}.get(str(argument), str(argument))


def _refused_format(request: Request) -> str | None:
    granularity = request.granularity
    if isinstance(granularity, NM):
        return None if granularity == NM(2, 4) else f"no kernel for {granularity.label}; 2:4 has one"
    if not isinstance(granularity, Block):
        return f"no kernel for {granularity.label}; blocks and 2:4 have them"
    if granularity.rows % SIDE or granularity.cols % SIDE:
        return f"sides of {granularity.label} are no multiples of {SIDE}"
    block_rows, block_columns = granularity.grid(request.shape)
    if block_columns > MAX_COLUMNS_16_BIT or block_rows * block_columns >= 2**31:
        return f"{block_rows} x {block_columns} blocks are more than the kernels count"
    return None


def _covers(record: KernelRecord, tokens: int) -> bool:
    return record.min_tokens <= tokens and (record.max_tokens is None or tokens <= record.max_tokens)


@cache
def device_refusal() -> str | None:
    """Why the GPUs of this machine do not run the kernels, if one of them does not.

    A request does not say which device it is for, so the least able one decides.
    """
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if reason := load_cuda():
        return reason
    for device in range(torch.cuda.device_count()):
        if (capability := torch.cuda.get_device_capability(device)) < OLDEST:
            return f"the GPU is sm_{capability[0]}{capability[1]}, kernels run from sm_80 on"
        with torch.cuda.device(device):
            if reason := cuda_refusal():
                return f"CUDA refuses the kernels on {torch.cuda.get_device_name(device)}: {reason}"
    return None


@cache
def _table(runs_here: bool) -> tuple[KernelRecord, ...]:
    """The lines of the native table."""
    records: list[KernelRecord] = []
    for line in native.cuda_kernels():
        kind, purpose, height = line.pop("format"), line.pop("purpose"), line.pop("height")
        suffix = {"linear": "", "columns": "_grad_input"}.get(purpose, f"_{purpose}")
        op = f"{kind}_conv2d" if purpose == "conv" else f"{kind}_linear{suffix}"
        # Which side of a block the height is of: outputs of a product with the weight are its rows.
        rows = SIDE if purpose in ("grad_input", "columns") else height
        cols = SIDE if purpose in ("linear", "columns", "conv") else height
        records.append(
            KernelRecord(
                backend=CudaBackend.name,
                op=op,
                granularity=kind,
                dtypes=("bfloat16", "float16"),
                isa="sm_80",
                runs_here=runs_here,
                rows=rows,
                only=NM(2, 4).label if kind == NM.kind else f"{rows}n x {cols}n",
                **line,
            )
        )
    return tuple(records)
