"""The one script for a day with a GPU: build, test, and time the GPU kernels: python bench/gpu.py --out gpu.jsonl

Needs a PyTorch with CUDA; nvcc, or an installed sparsekern with the CUDA library; pytest for the tests. First it builds
the library and runs the GPU tests; what fails there is told again at the end. Then it times each case, the goals of
docs/gpu.md first: ``sk.linear``, and our CUDA and Triton kernels by name, whatever the model of plan/gpu.py thinks of
them, against cuBLAS (``F.linear``), PyTorch's block-sparse Triton kernel (``torch.sparse``, not tuned for the card) and
its 2:4 (``to_sparse_semi_structured``, by cuSPARSELt or CUTLASS). A few convolutions follow, channels-last, against
cuDNN (``F.conv2d``, its algorithm chosen by ``cudnn.benchmark``). Each call is behind a flush of L2: a round is so many
flushes and calls less so many flushes, ours and cuBLAS as CUDA graphs. A way that is not there or fails is recorded
with its reason. Weights and activations are random, for zeros draw less power and flatter. Each result is checked
against float32 before it is timed. --quick takes less than 8 minutes, tests included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a bare GPU machine has this checkout and nothing installed

import sparsekern as sk  # noqa: E402
from sparsekern.plan import Backend, ConvRequest, Request  # noqa: E402
from sparsekern.plan.registry import backend_named  # noqa: E402

FLUSHED_BYTES = 256 * 2**20
"""More than the L2 of any GPU there is."""

CALLS = 5
"""In a round."""

BUSY_CYCLES = 2_000_000
"""A millisecond or two of the GPU, in which the CPU launches a round."""

Call = Callable[[], Tensor]

# In, out. The last one has so few outputs that thread blocks share them: keys of a large language model.
SHAPES = [(4096, 4096), (8192, 8192), (4096, 14336), (8192, 1024)]
QUICK_SHAPES = SHAPES[:2]
TOKENS = [1, 16, 128, 1024, 8192]
QUICK_TOKENS = [1, 16, 8192]
# Channels, and pixels of a side.
IMAGES = [(64, 56), (128, 28), (256, 14), (512, 7)]
QUICK_IMAGES = IMAGES[1:3]
BLOCKS = [sk.Block(128, 128), sk.Block(64, 64), sk.Block(32, 32), sk.Block(16, 16)]
DENSITIES = [0.5, 0.25, 0.1]


class Way(NamedTuple):
    """A way to multiply: what makes its call, and whether that is timed as a CUDA graph."""

    make: Callable[[], Call]
    as_graph: bool


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
    """All that is timed, largest first: there the goals are."""
    shapes, tokens = (QUICK_SHAPES, QUICK_TOKENS) if quick else (SHAPES, TOKENS)
    for count, (inputs, outputs) in itertools.product(reversed(tokens), reversed(shapes)):
        yield Case(inputs, outputs, count, sk.NM(2, 4), 0.5, torch.bfloat16)
        for block, density in itertools.product(BLOCKS, DENSITIES):
            yield Case(inputs, outputs, count, block, density, torch.bfloat16)


@dataclass(frozen=True)
class ConvCase:
    """A convolution of 3x3 pixels whose output is as large as its input, channels-last."""

    channels: int
    outputs: int
    size: int
    batch: int
    granularity: sk.Block
    density: float
    dtype: torch.dtype

    @property
    def pixels(self) -> int:
        return self.batch * self.size**2

    def record(self) -> dict[str, Any]:
        return {
            "in": self.channels, "out": self.outputs, "tokens": self.pixels, "window": "3x3", "size": self.size,
            "granularity": self.granularity.label, "density": self.density,
            "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip


def conv_cases(quick: bool) -> Iterator[ConvCase]:
    """Those of a ResNet-50, whose last ones have most weights and fewest pixels."""
    for (channels, size), block in itertools.product(QUICK_IMAGES if quick else IMAGES, BLOCKS[1:3]):
        for density in DENSITIES:
            yield ConvCase(channels, channels, size, 32, block, density, torch.bfloat16)


def seconds(call: Callable[[], object], rounds: int, flush: Tensor, as_graph: bool) -> dict[str, Any]:
    """Median, quartiles and number of the times of one call behind a flush of L2.

    Args:
        call: what is timed.
        rounds: of ``CALLS`` calls.
        flush: memory larger than L2.
        as_graph: replayed as a CUDA graph; else launched one after another while the GPU is still busy.
    """

    def flushed() -> None:
        for _ in range(CALLS):
            flush.zero_()
            call()

    def flushes() -> None:
        for _ in range(CALLS):
            flush.zero_()

    flushed()
    torch.cuda.synchronize()
    if as_graph:
        with_calls, without = _graph(flushed).replay, _graph(flushes).replay
    else:
        with_calls, without = flushed, flushes
    times = sorted((_elapsed(with_calls) - _elapsed(without)) / CALLS for _ in range(rounds))
    q1, median, q3 = statistics.quantiles(times, n=4)
    return {"median": median, "q1": q1, "q3": q3, "n": rounds, "graph": as_graph}


def _graph(body: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


def _elapsed(body: Callable[[], None]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # Meanwhile the CPU launches what follows.
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    body()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def ways(case: Case, packed: sk.PackedWeight, x: Tensor, weight: Tensor) -> dict[str, Way]:
    """What makes each way to multiply by the pruned weight, by name; making may fail."""
    block = case.granularity if isinstance(case.granularity, sk.Block) else None
    columns = (None, *packed.shape, "none")

    def kernel() -> Call:
        kernel = cuda().kernel_name(request(case), case.tokens)
        if block is None:
            return lambda: torch.ops.sparsekern.nm_linear(x, *packed.tensors, None, 2, 4, *packed.shape, "none", kernel)
        return lambda: torch.ops.sparsekern.block_linear(x, *packed.tensors, *columns, kernel)

    def triton() -> Call:
        refused = backend_named("triton").refusal(request(case))
        if refused:
            raise RuntimeError(refused)
        return lambda: backend_named("triton").linear(x, case.granularity, packed.shape, packed.tensors, None, "none")

    def by_pointers() -> Call:
        if block is None or torch.cuda.get_device_capability() < (9, 0):
            raise RuntimeError("is what triton is")
        call = triton()
        from sparsekern.backends.triton import ops

        def without_tma() -> Tensor:
            with mock.patch.object(ops, "tma_tile", lambda *arguments: None):
                return call()

        return without_tma

    def torch_sparse() -> Call:
        if block is None:
            packed_by_torch = torch.sparse.to_sparse_semi_structured(weight)
        else:
            packed_by_torch = weight.to_sparse_bsr((block.rows, block.cols))
        return lambda: F.linear(x, packed_by_torch)

    return {
        "cublas": Way(lambda: lambda: F.linear(x, weight), as_graph=True),
        "sparsekern": Way(lambda: lambda: sk.linear(x, packed), as_graph=True),
        "kernel": Way(kernel, as_graph=True),
        "triton": Way(triton, as_graph=False),
        "triton without TMA": Way(by_pointers, as_graph=False),
        # A capture that fails cannot be recovered from, and these may fail.
        "torch 2:4" if block is None else "torch bsr": Way(torch_sparse, as_graph=False),
    }


def cuda() -> Backend:
    return backend_named("cuda")


def request(case: Case) -> Request:
    return Request(case.granularity, (case.outputs, case.inputs), case.dtype, "cuda")


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
    wanted = x.float() @ weight.float().T
    times = timed(ways(case, packed, x, weight), wanted, rounds, flush)
    ours, dense = times["kernel"].get("median"), times["cublas"].get("median")
    kept = packed.values.numel()
    return {
        "suite": "gpu",
        "case": case.record() | {"kernel": cuda().kernel_name(request(case), case.tokens)},
        "times": times,
        "speedup": dense / ours if ours and dense else None,
        "kept_tflops": 2e-12 * kept * case.tokens / ours if ours else None,
        "weight_gbs": 1e-9 * packed.nbytes / ours if ours else None,
        "model_takes": cuda().serving(request(case), kept, case.tokens).name,
        "env": environment(),
    }


def timed(ways: dict[str, Way], wanted: Tensor, rounds: int, flush: Tensor) -> dict[str, Any]:
    """What each way takes, once it has made what is wanted."""
    times: dict[str, Any] = {}
    for name, way in ways.items():
        try:
            call = way.make()
            error = float((call().float() - wanted).abs().max() / wanted.abs().max())
            taken = seconds(call, rounds, flush, way.as_graph) if error < 0.02 else {"wrong": error}
            times[name] = {"error": error, **taken}
        except Exception as failed:  # a failure of any kind is a result
            torch.cuda.synchronize()
            times[name] = {"failed": f"{type(failed).__name__}: {str(failed).splitlines()[0][:160]}"}
    return times


def conv_ways(case: ConvCase, packed: sk.PackedWeight, x: Tensor, weight: Tensor) -> dict[str, Way]:
    """What makes each way to convolve with the pruned weight, by name; making may fail."""
    shape, numbers = packed.dense_shape, ((1, 1), (1, 1), (1, 1), 1, "none")

    def by(name: str) -> Call:
        if refused := backend_named(name).conv_refusal(conv_request(case)):
            raise RuntimeError(refused)
        return lambda: backend_named(name).conv2d(x, case.granularity, shape, packed.tensors, None, *numbers)

    return {
        "cudnn": Way(lambda: lambda: F.conv2d(x, weight, padding=1), as_graph=True),
        "sparsekern": Way(lambda: lambda: sk.conv2d(x, packed, padding=1), as_graph=True),
        "kernel": Way(lambda: by("cuda"), as_graph=True),
        "triton": Way(lambda: by("triton"), as_graph=False),
    }


def conv_request(case: ConvCase) -> ConvRequest:
    return ConvRequest(case.granularity, (case.outputs, case.channels, 3, 3), 1, case.dtype, "cuda")


def measure_conv(case: ConvCase, rounds: int, flush: Tensor) -> dict[str, Any]:
    """The record of a convolution."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    weight = torch.randn(case.outputs, case.channels, 3, 3, device="cuda") * (9 * case.channels) ** -0.5
    mask = sk.make_mask(torch.rand_like(weight), case.granularity, 1 - case.density)
    weight = (weight * mask).to(case.dtype).to(memory_format=torch.channels_last)
    x = torch.randn(case.batch, case.channels, case.size, case.size, device="cuda").to(case.dtype)
    x = x.to(memory_format=torch.channels_last)
    packed = sk.pack(weight, case.granularity, mask)
    wanted = F.conv2d(x.double(), weight.double(), padding=1).float()
    times = timed(conv_ways(case, packed, x, weight), wanted, rounds, flush)
    ours, dense = times["kernel"].get("median"), times["cudnn"].get("median")
    return {
        "suite": "gpu",
        "case": case.record() | {"kernel": cuda().conv_kernel_name(conv_request(case))},
        "times": times,
        "speedup": dense / ours if ours and dense else None,
        "kept_tflops": 2e-12 * packed.values.numel() * case.pixels / ours if ours else None,
        "env": environment(),
    }


@cache
def environment() -> dict[str, Any]:
    """The card and the versions."""
    from sparsekern.cli.doctor import native_facts

    major, minor = torch.cuda.get_device_capability()
    asked = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True) if shutil.which(asked[0]) else None
    return {
        "gpu": torch.cuda.get_device_name(), "arch": f"sm_{major}{minor}", "torch": torch.__version__,
        "cuda": torch.version.cuda, "git": native_facts().get("git") or "unknown",
        "driver, power limit, clock": told.stdout.strip() if told else None,
    }  # fmt: skip


def line(record: dict[str, Any]) -> str:
    """A record for people."""
    case, times = record["case"], record["times"]
    told = ", ".join(
        f"{name} {way['median'] * 1e6:.1f} us" if "median" in way else f"{name} {next(iter(way))}"
        for name, way in times.items()
    )
    speedup = f"{record['speedup']:.2f}x" if record["speedup"] else "-"
    head = f"{case['tokens']:5} x {shape_of(case)} {case['granularity']:>8} d={case['density']:<4}"
    return f"{head} {speedup:>7}  {told}"


def shape_of(case: dict[str, Any]) -> str:
    """Inputs and outputs, and of a convolution the pixels of its kernel."""
    return f"{case['in']}->{case['out']}" + (f" ({case['window']})" if "window" in case else "")


def table(records: list[dict[str, Any]]) -> str:
    """Speed-up over cuBLAS, or cuDNN, by case, in Markdown."""
    rows = ["| shape | tokens | granularity | density | kernel | us | over dense | over torch.sparse |"]
    rows.append("|" + " --- |" * 8)
    for record in records:
        case, times = record["case"], record["times"]
        ours = times["kernel"].get("median")
        sparse = next((way.get("median") for name, way in times.items() if name.startswith("torch")), None)
        cells = (
            shape_of(case), case["tokens"], case["granularity"], case["density"], case["kernel"],
            f"{ours * 1e6:.1f}" if ours else "failed", f"{record['speedup']:.2f}" if record["speedup"] else "-",
            f"{sparse / ours:.2f}" if sparse and ours else "-",
        )  # fmt: skip
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def build_and_test() -> list[str]:
    """Build the libraries in this checkout and run the GPU tests; what failed, which ends nothing."""
    here = {**os.environ, "PYTHONPATH": str(ROOT), "SPARSEKERN_REQUIRE_CUDA": "1"}
    pytest = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q"]
    commands = (
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        [*pytest, "tests/cuda/test_on_gpu.py"],
        [*pytest, "tests/triton/test_on_gpu.py"],
    )
    return [" ".join(command) for command in commands if subprocess.run(command, cwd=ROOT, env=here).returncode != 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="append JSON lines to this file")
    parser.add_argument("--quick", action="store_true", help="two shapes, three numbers of tokens")
    parser.add_argument("--rounds", type=int, default=10, help=f"of {CALLS} calls each")
    parser.add_argument("--no-build", action="store_true", help="time what is installed, without building or testing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; tests/emulator runs the kernels without one")
    if not options.no_build:
        failed = build_and_test()
        # Anew, with the libraries that there are now.
        again = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--no-build"])
        for command in failed:
            print(f"bench/gpu.py: this failed: {command}", file=sys.stderr)
        raise SystemExit(1 if failed else again.returncode)
    flush = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    records = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        for case in itertools.chain(cases(options.quick), conv_cases(options.quick)):
            measured = measure_conv if isinstance(case, ConvCase) else measure
            records.append(measured(case, options.rounds, flush))
            print(line(records[-1]), flush=True)
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
    print(table(records))


if __name__ == "__main__":
    main()
