"""Write the tables that the documentation owes to the kernel registry, between their markers.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; ``make docs`` renews it
and tests/packaging/test_docs.py fails when one is stale.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import sparsekern as sk
from sparsekern.backends.formats import format_of

ROOT = Path(__file__).resolve().parents[1]
ISAS = {
    "amx_bf16": "AMX-BF16",
    "avx512_bf16": "AVX512-BF16",
    "avx512": "AVX-512",
    "avx2": "AVX2",
    "portable": "portable C++",
}
LEVELS = list(ISAS)


def documents() -> list[Path]:
    """The files in which tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def kernel_table() -> str:
    """Every kernel, one line each, whatever this machine can run."""
    columns = ("kernel", "op", "granularity", "weights", "ISA", "tokens")
    rows = [(f"`{k.name}`", f"`{k.op}`", k.takes, ", ".join(k.dtypes), k.machines, k.tokens) for k in sk.kernels()]
    return _markdown(columns, rows)


def support_matrix() -> str:
    """What products have a hand-written kernel on which CPU; PyTorch multiplies the rest, kept rows alone where it can.

    A kernel of one instruction set serves those above it too.
    """
    named = [kernel for kernel in sk.kernels() if "_grad_" not in kernel.op and kernel.isa in (*LEVELS, "torch")]
    records = [record for kernel in named for record in (kernel, *_for_single_weights(kernel))]
    # Where one kernel takes all that another takes, such as 16n x c all of 32n x c, its line says it for both.
    widest = [kernel for kernel in records if not any(_says_it_for(other, kernel) for other in records)]
    everywhere = {
        (_layer(kernel), kernel.takes, dtype)
        for kernel in widest
        if kernel.isa == LEVELS[-1] or kernel.backend == "rows"
        for dtype in kernel.dtypes
    }
    ways_of: dict[tuple[str, str, str], set[str]] = {}
    for kernel in widest:
        what = (_layer(kernel), kernel.takes)
        dtypes = [d for d in kernel.dtypes if kernel.backend != "reference" or (*what, d) not in everywhere]
        if dtypes:
            ways = ways_of.setdefault((*what, ", ".join(dtypes)), set())
            ways.add(kernel.backend if kernel.isa == "torch" else kernel.isa)
    rows = [
        (*key, *(_way(ways, set(LEVELS[i:])) for i in range(len(LEVELS))))
        for key, ways in sorted(ways_of.items(), key=lambda item: item[0][0] == "Conv2d")
    ]
    return _markdown(("layer", "granularity", "weights", *ISAS.values()), rows)


def _for_single_weights(kernel: sk.KernelRecord) -> list[sk.KernelRecord]:
    """The same kernel for weights that are kept one by one, if it takes their tensors for those of a block."""
    seen_as = format_of(sk.Unstructured())
    assert isinstance(seen_as, sk.Block)
    if kernel.isa not in LEVELS or kernel.granularity != seen_as.kind or not kernel.takes_rows(seen_as.rows):
        return []
    return [dataclasses.replace(kernel, granularity=sk.Unstructured.kind)]


def _way(ways: set[str], levels: set[str]) -> str:
    if ways & levels:
        return "kernel"
    return "kept rows" if "rows" in ways else "reference"


def _layer(kernel: sk.KernelRecord) -> str:
    return "Conv2d" if kernel.op.endswith("conv2d") else "Linear"


def _says_it_for(kernel: sk.KernelRecord, other: sk.KernelRecord) -> bool:
    if (
        not {kernel.isa, other.isa} <= set(LEVELS)
        or _layer(kernel) != _layer(other)
        or not kernel.covers(other)
        or not set(other.dtypes) <= {*kernel.dtypes}
    ):
        return False
    above = LEVELS.index(other.isa) < LEVELS.index(kernel.isa)
    same = other.isa == kernel.isa and not other.covers(kernel)
    return (above and other.dtypes != kernel.dtypes) or same


def gpu_loops() -> str:
    """Instructions of the CUDA kernels' main loops for each of tensor cores, as tests/cuda holds them."""
    mixes = json.loads((ROOT / "tests" / "cuda" / "instruction_mix.json").read_text())["archs"]
    bfloat16 = [name for name in mixes["sm_80"] if "BFloat16" in name]
    rows = [(f"`{name}`", *(f"{mixes[arch][name]:.1f}" for arch in mixes)) for name in bfloat16]
    return _markdown(("kernel", *mixes), rows)


TABLES: dict[str, Callable[[], str]] = {"kernels": kernel_table, "support": support_matrix, "gpu_loops": gpu_loops}


def render(text: str) -> str:
    """The document with each of its tables as the registry has it now."""

    def renew(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{TABLES[found[2]]()}\n\n{found[3]}"

    return re.sub(r"(<!-- table: (\w+) -->).*?(<!-- end of table -->)", renew, text, flags=re.DOTALL)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for path in documents():
        path.write_text(render(path.read_text()))
