"""The compiled CPU kernels. The table itself stands in ``csrc/cpu/kernels.inc``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .._native import native
from ..layouts import NM, Block, Granularity, dtype_name
from ..listings import Code, x86
from ..ops import format_grad_input, format_grad_values
from ..plan.choose import kernel_for
from ..plan.registry import FAMILIES, Backend, KernelRecord, Request, Tile
from .cpu_conv import CONV_OPS, CpuConvolutions
from .formats import blocks_of, format_of, is_nm, refused_weight

OPS = {Block.kind: "block_linear", NM.kind: "nm_linear"}
"""The op of each format that has kernels."""

SERVES = {"float32": ("float32", "bfloat16"), "bfloat16": ("bfloat16",)}
"""The dtypes of weights for kernels of either numbers: bfloat16 is widened for those of float32."""


class CpuBackend(CpuConvolutions, Backend):
    """Blocks, single weights and n:m on x86-64 with AVX-512 or AVX2, and portably on anything else.

    Products of bfloat16 are summed in float32: by kernels of their own where the CPU multiplies bfloat16, by those of
    float32 elsewhere.
    """

    name: ClassVar[str] = "cpu"

    def kernels(self) -> list[KernelRecord]:
        return list(_table(self.name)) if native else []

    def refusal(self, request: Request) -> str | None:
        return refused_weight(request.granularity, request.shape, request.dtype, request.device)

    def kernel_name(self, request: Request, tokens: int) -> str:
        format_ = format_of(request.granularity)
        assert format_ is not None
        # The op handles an input without tokens like one token.
        return native.choose(format_.kind, format_.rows, max(1, tokens), dtype_name(request.dtype))

    def candidates(self, request: Request) -> list[KernelRecord]:
        format_ = format_of(request.granularity)
        if format_ is None or self.refusal(request) is not None:
            return []
        op, dtype = OPS[format_.kind], dtype_name(request.dtype)
        records = {record.name: record for record in self.kernels()}
        # Those of levels below all that lines are chosen from are superseded.
        numbers = {1, *(record.min_tokens for record in records.values() if record.op == op)}
        supported = native.isa_supported()
        lowest = min(supported.index(records[self.kernel_name(request, tokens)].isa) for tokens in numbers)
        levels = supported[lowest : supported.index(native.isa()) + 1]
        return [
            record
            for record in records.values()
            if record.op == op and record.isa in levels and record.takes_rows(format_.rows) and dtype in record.dtypes
        ]

    def linear(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        kernel = kernel_for(self, x, granularity, shape, tensors[0])
        return self.linear_by(kernel, x, granularity, shape, tensors, bias, activation)

    def linear_by(
        self,
        kernel: str,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        # The overloads, for choosing one by the arguments costs more than calling it.
        if is_nm(granularity):
            return torch.ops.sparsekern.nm_linear.default(
                x, *tensors, bias, granularity.n, granularity.m, shape[0], shape[1], activation, kernel
            )
        values, columns, offsets = blocks_of(granularity, tensors)
        return torch.ops.sparsekern.block_linear.default(
            x, values, columns, offsets, bias, shape[0], shape[1], activation, kernel
        )

    def grad_input(
        self, grad: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        if is_nm(granularity):
            return format_grad_input("nm_linear", grad, tensors, (granularity.n, granularity.m, *shape))
        return format_grad_input("block_linear", grad, blocks_of(granularity, tensors), shape)

    def grad_values(
        self, grad: Tensor, x: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        if is_nm(granularity):
            return format_grad_values("nm_linear", grad, x, tensors, (granularity.n, granularity.m, *shape))
        return format_grad_values("block_linear", grad, x, blocks_of(granularity, tensors), shape).view(
            tensors[0].shape
        )

    def code(self, kernel: str, request: Request, tokens: int, target: str | None) -> Code | None:
        if target is not None or self.refusal(request) is not None:
            return None
        kernel = kernel or self.kernel_name(request, tokens)
        record = next(record for record in self.kernels() if record.name == kernel)
        forms = _forms_of(request.granularity)
        code = x86.kernel_code(kernel, record.isa, Path(native.__file__), f"sparsekern_{kernel}", forms)
        if request.dtype is torch.bfloat16 and "float32" in record.dtypes:
            widened = f"bfloat16 is widened for this loop; the fewest tokens may run on sparsekern_{kernel}_unwidened"
            return replace(code, notes=(*code.notes, widened))
        return code


def _forms_of(granularity: Granularity) -> tuple[str, ...]:
    """Patterns of the functions compiled for a granularity, the most special first: n:m has n and m in their names."""
    if not is_nm(granularity):
        return ()
    n, m = granularity.n, granularity.m
    fours = "|PairedFours<" if (n, m) == (2, 4) else ""
    return (
        rf"PicksStrip<.*, {n}, {m}, \d+, \d+>{fours}",
        rf"(?:NMWeights|PairedGroups)<.*, {n}, {m}, \d+>",
        r"(?:NMWeights|PairedGroups)<.*, 0, 0, 0>",
    )


@cache
def _table(backend: str) -> tuple[KernelRecord, ...]:
    """The lines of the native tables."""
    records: list[KernelRecord] = []
    for line in native.kernels():
        kind, dtypes = line.pop("format"), SERVES[line.pop("numbers")]
        shape = Tile(line.pop("family"), line.pop("outputs"), line.pop("panel"), line.pop("lanes"))
        tile = shape if shape.family in FAMILIES else None
        record = KernelRecord(backend=backend, op=OPS[kind], granularity=kind, dtypes=dtypes, tile=tile, **line)
        # The first line that fits is chosen, so an earlier one that takes these blocks ends this one's range.
        rivals = [above for above in records if above.isa == record.isa and above.cores == "any"]
        limits = [above.min_tokens for above in rivals if above.covers(record)]
        records.append(replace(record, max_tokens=min(limits) - 1) if limits else record)
    for line in native.grad_kernels():
        kind = line.pop("format")
        op = f"{OPS[kind]}_grad_{line.pop('grad')}"
        records.append(KernelRecord(backend=backend, op=op, granularity=kind, dtypes=("float32",), **line))
    for line in native.conv_kernels():
        kind = line.pop("format")
        records.append(
            KernelRecord(backend=backend, op=CONV_OPS[kind], granularity=kind, dtypes=SERVES["float32"], **line)
        )
    return tuple(records)
