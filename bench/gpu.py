"""The one script for a day with a GPU: build, test, and time the GPU kernels: python bench/gpu.py --out gpu.jsonl

Needs a PyTorch with CUDA; nvcc, or an installed sparsekern with the CUDA library; pytest for the tests. First it builds
the library and runs tests/cuda, then it times each case with CUDA graphs, L2 flushed before each call: our kernels
against cuBLAS (``F.linear``), PyTorch's block-sparse Triton kernel (``torch.sparse``) and its 2:4
(``to_sparse_semi_structured``, by cuSPARSELt or CUTLASS). A rival that is not there or fails is recorded with its
reason. Weights and activations are random, for zeros draw less power and flatter. Each result is checked against
float32 before it is timed. --quick takes less than 8 minutes, tests included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a bare GPU machine has this checkout and nothing installed

import sparsekern as sk  # noqa: E402

FLUSHED_BYTES = 256 * 2**20
"""More than the L2 of any GPU there is."""

SHAPES = [(4096, 4096), (8192, 8192), (4096, 14336)]  # in, out
QUICK_SHAPES = SHAPES[:2]
TOKENS = [1, 16, 128, 1024, 8192]
QUICK_TOKENS = [1, 16, 8192]
BLOCKS = [sk.Block(128, 128), sk.Block(64, 64), sk.Block(32, 32), sk.Block(16, 16)]
DENSITIES = [0.5, 0.25, 0.1]


@dataclass(frozen=True)
class Case:
    inputs: int
    outputs: int
    tokens: int
    granularity: sk.Granularity
    density: float
    dtype: torch.dtype

    def record(self) -> dict[str, Any]:
        return {
            "in": self.inputs, "out": self.outputs, "tokens": self.tokens, "granularity": self.granularity.label,
            "density": self.density, "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip


def cases(quick: bool) -> Iterator[Case]:
    """All that is timed, the goals of docs/kernels.md first."""
    shapes, tokens = (QUICK_SHAPES, QUICK_TOKENS) if quick else (SHAPES, TOKENS)
    for (inputs, outputs), count in itertools.product(shapes, tokens):
        yield Case(inputs, outputs, count, sk.NM(2, 4), 0.5, torch.bfloat16)
        for block, density in itertools.product(BLOCKS, DENSITIES):
            yield Case(inputs, outputs, count, block, density, torch.bfloat16)


def seconds(call: Callable[[], object], rounds: int, flush: Tensor) -> dict[str, Any]:
    """Median, quartiles and number of the times of one call, replayed as a CUDA graph behind a flush of L2."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) * 1e-3 for begin, end in events)
    q1, median, q3 = statistics.quantiles(times, n=4)
    return {"median": median, "q1": q1, "q3": q3, "n": rounds}


def rivals(case: Case, x: Tensor, weight: Tensor) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """What makes each way to multiply by the pruned weight, by name; making may fail."""
    ways: dict[str, Callable[[], Callable[[], Tensor]]] = {"cublas": lambda: lambda: F.linear(x, weight)}
    if isinstance(case.granularity, sk.NM):

        def semi_structured() -> Callable[[], Tensor]:
            packed = torch.sparse.to_sparse_semi_structured(weight)
            return lambda: F.linear(x, packed)

        ways["torch 2:4"] = semi_structured
    else:
        block = (case.granularity.rows, case.granularity.cols)

        def block_sparse() -> Callable[[], Tensor]:
            packed = weight.to_sparse_bsr(block)
            return lambda: F.linear(x, packed)

        ways["torch bsr"] = block_sparse
    return ways


def measure(case: Case, rounds: int, flush: Tensor) -> dict[str, Any]:
    """The record of a case."""
    torch.manual_seed(0)
    weight = torch.randn(case.outputs, case.inputs, device="cuda") * case.inputs**-0.5
    sparsity = None if isinstance(case.granularity, sk.NM) else 1 - case.density
    # Random scores: which blocks are kept says nothing about what they hold.
    mask = sk.make_mask(torch.rand_like(weight), case.granularity, sparsity)
    weight = (weight * mask).to(case.dtype)
    x = torch.randn(case.tokens, case.inputs, device="cuda").to(case.dtype)
    packed = sk.pack(weight, case.granularity, mask)
    ways = {"sparsekern": lambda: lambda: sk.linear(x, packed), **rivals(case, x, weight)}
    wanted = x.float() @ weight.float().T
    times: dict[str, Any] = {}
    for name, make in ways.items():
        try:
            call = make()
            error = float((call().float() - wanted).abs().max() / wanted.abs().max())
            times[name] = {"error": error, **seconds(call, rounds, flush)} if error < 0.02 else {"wrong": error}
        except Exception as failed:  # a failure of any kind is a result
            torch.cuda.synchronize()
            times[name] = {"failed": f"{type(failed).__name__}: {str(failed).splitlines()[0][:160]}"}
    ours, dense = times["sparsekern"].get("median"), times["cublas"].get("median")
    kernel = sk.plan.kernel_name(
        sk.plan.Request(case.granularity, packed.shape, case.dtype, "cuda"), packed.values.numel(), case.tokens
    )
    kept = packed.values.numel()
    return {
        "suite": "gpu",
        "case": case.record() | {"kernel": kernel},
        "times": times,
        "speedup": dense / ours if ours and dense else None,
        "kept_tflops": 2e-12 * kept * case.tokens / ours if ours else None,
        "weight_gbs": 1e-9 * packed.nbytes / ours if ours else None,
        "env": environment(),
    }


def environment() -> dict[str, Any]:
    """The card and the versions."""
    from sparsekern.cli.doctor import native_facts

    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(), "arch": f"sm_{major}{minor}", "torch": torch.__version__,
        "cuda": torch.version.cuda, "git": native_facts().get("git") or "unknown",
    }  # fmt: skip


def line(record: dict[str, Any]) -> str:
    """A record for people."""
    case, times = record["case"], record["times"]
    told = ", ".join(
        f"{name} {way['median'] * 1e6:.1f} us" if "median" in way else f"{name} {next(iter(way))}"
        for name, way in times.items()
    )
    speedup = f"{record['speedup']:.2f}x" if record["speedup"] else "-"
    head = f"{case['tokens']:5} x {case['in']}->{case['out']} {case['granularity']:>8} d={case['density']:<4}"
    return f"{head} {speedup:>7}  {told}"


def table(records: list[dict[str, Any]]) -> str:
    """Speed-up over cuBLAS by case, in Markdown."""
    rows = ["| shape | tokens | granularity | density | kernel | us | over cuBLAS | over torch.sparse |"]
    rows.append("|" + " --- |" * 8)
    for record in records:
        case, times = record["case"], record["times"]
        ours = times["sparsekern"].get("median")
        sparse = next((way.get("median") for name, way in times.items() if name.startswith("torch")), None)
        cells = (
            f"{case['in']}->{case['out']}", case["tokens"], case["granularity"], case["density"], case["kernel"],
            f"{ours * 1e6:.1f}" if ours else "failed", f"{record['speedup']:.2f}" if record["speedup"] else "-",
            f"{sparse / ours:.2f}" if sparse and ours else "-",
        )  # fmt: skip
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def build_and_test() -> None:
    """Build the libraries in this checkout and run the GPU tests; ends the script where one of them fails."""
    here = {**os.environ, "PYTHONPATH": str(ROOT), "SPARSEKERN_REQUIRE_CUDA": "1"}
    python = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", "-x"]
    for command in (
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        [*python, "tests/cuda/test_on_gpu.py"],
    ):
        done = subprocess.run(command, cwd=ROOT, env=here)
        if done.returncode != 0:
            raise SystemExit(f"bench/gpu.py: {' '.join(command)} failed, so nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="append JSON lines to this file")
    parser.add_argument("--quick", action="store_true", help="two shapes, three numbers of tokens")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--no-build", action="store_true", help="time what is installed, without building or testing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; tests/emulator runs the kernels without one")
    if not options.no_build:
        build_and_test()
        # Anew, with the libraries that there are now.
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:], "--no-build"])
    flush = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    records = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        for case in cases(options.quick):
            records.append(measure(case, options.rounds, flush))
            print(line(records[-1]), flush=True)
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
    print(table(records))


if __name__ == "__main__":
    main()
