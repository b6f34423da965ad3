"""The compiled CPU kernels. The table itself stands in ``csrc/cpu/kernels.inc``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .._native import failure, native
from ..layouts import Block, Granularity
from ..plan.registry import Backend, KernelRecord, Request


class CpuBackend(Backend):
    """float32 block layouts on x86-64 with AVX-512 or AVX2, and portably on anything else."""

    name: ClassVar[str] = "cpu"

    def kernels(self) -> list[KernelRecord]:
        if native is None:
            return []
        return [KernelRecord(backend=self.name, op="block_linear", dtypes=("float32",), **k) for k in native.kernels()]

    def refusal(self, request: Request) -> str | None:
        if native is None:
            return f"native kernels are not installed ({failure})"
        if request.device != "cpu":
            return f"weight is on {request.device}"
        if request.dtype != torch.float32:
            return f"no kernel for {request.dtype}"
        if not isinstance(request.granularity, Block):
            return f"no kernel for {request.granularity.label}"
        return self._native_choice(request, tokens=64)[1]

    def kernel_name(self, request: Request, tokens: int) -> str:
        return self._native_choice(request, tokens)[0]

    def linear(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        values, columns, offsets = tensors
        return torch.ops.sparsekern.block_linear(x, values, columns, offsets, bias, shape[0], shape[1], activation, "")

    @staticmethod
    def _native_choice(request: Request, tokens: int) -> tuple[str, str | None]:
        """Kernel name and None, or an empty name and the reason why no kernel takes the block."""
        block = request.granularity
        assert isinstance(block, Block)
        if -(-request.shape[1] // block.cols) > 1 << 16:
            return "", "more than 65536 block columns"
        name = native.choose(block.rows, tokens)
        return name, None if name else f"no kernel for blocks of {block.rows} rows"
