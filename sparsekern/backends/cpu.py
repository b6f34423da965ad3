"""The compiled CPU kernels. The table itself stands in ``csrc/cpu/kernels.inc``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from .._native import failure, native
from ..layouts import Block, Granularity
from ..layouts.compressed import MAX_COLUMNS_16_BIT
from ..plan.registry import Backend, KernelRecord, Request


class CpuBackend(Backend):
    """float32 block layouts on x86-64 with AVX-512 or AVX2, and portably on anything else."""

    name: ClassVar[str] = "cpu"

    def kernels(self) -> list[KernelRecord]:
        records: list[KernelRecord] = []
        for line in native.kernels() if native else ():
            record = KernelRecord(
                backend=self.name, op="block_linear", granularity=Block.kind, dtypes=("float32",), **line
            )
            # The first line that fits is chosen, so an earlier one that takes these blocks ends this one's range.
            limits = [above.min_tokens for above in records if above.isa == record.isa and above.covers(record)]
            records.append(replace(record, max_tokens=min(limits) - 1) if limits else record)
        return records

    def refusal(self, request: Request) -> str | None:
        if native is None:
            return f"native kernels are not installed ({failure})"
        if request.device != "cpu":
            return f"weight is on {request.device}"
        if request.dtype != torch.float32:
            return f"no kernel for {request.dtype}"
        block = request.granularity
        if not isinstance(block, Block):
            return f"no kernel for {block.label}"
        if block.grid(request.shape)[1] > MAX_COLUMNS_16_BIT:
            return f"more than {MAX_COLUMNS_16_BIT} block columns"
        # One token asks for the least: no line of the table has an upper limit, so what takes one takes any number.
        return None if native.choose(block.rows, 1) else f"no kernel for blocks of {block.rows} rows"

    def kernel_name(self, request: Request, tokens: int) -> str:
        assert isinstance(request.granularity, Block)
        # The op handles an input without tokens like one token.
        return native.choose(request.granularity.rows, max(1, tokens))

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
        # The overload, for choosing it by the arguments costs more than calling it.
        return torch.ops.sparsekern.block_linear.default(
            x, values, columns, offsets, bias, shape[0], shape[1], activation, ""
        )
