"""What every benchmark shares: the machine's peak, the environment record, the results file.

Correctness is checked by the caller before anything is timed; ``sparsekern.plan.interleave`` times.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import sparsekern as sk
from sparsekern._native import native
from sparsekern.cli import doctor
from sparsekern.plan import Sample, interleave
from sparsekern.plan.target import cpu_identity

TRIAL_ROUNDS = 10


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has; see ``parsed``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; an error without the native kernels, for what would be measured then is the reference."""
    options = parser.parse_args()
    if native is None:
        parser.error("the native kernels are not installed; python -m sparsekern doctor says why")
    return options


def against_dense(
    ours: Callable[[], object],
    dense: Mapping[str, Callable[[], object]],
    trial: Mapping[str, Sample],
    rounds: int,
    stored: float,
) -> dict[str, Any]:
    """Ours and the fastest dense variant of a trial, interleaved; and ours and eager PyTorch.

    Args:
        ours: a call of the layer.
        dense: calls of the dense variants, ``eager`` among them.
        trial: their times, which decide.
        rounds: of all.
        stored: density of the weight.

    Returns:
        The part of a record that every comparison has; times in seconds.
    """
    baseline = min(trial, key=lambda name: trial[name].median)
    # Two at a time: a third weight would pass through the caches between them.
    times = interleave({"dense": dense[baseline], "sparse": ours}, rounds)
    ratio = over_eager = times["dense"].over(times["sparse"])
    if baseline != "eager":
        beside = interleave({"eager": dense["eager"], "sparse": ours}, rounds)
        over_eager = beside["eager"].over(beside["sparse"])
    return {
        "t": times["sparse"].record(),
        "baseline": {
            "name": baseline,
            **times["dense"].record(),
            "trials": {name: sample.record() for name, sample in trial.items()},
        },
        "ratio": ratio.record(),
        "stored": stored,
        "speedup": ratio.median,
        "speedup_eager": over_eager.median,
        "efficiency": ratio.median * stored,
    }


def against_peak(record: dict[str, Any], weights: float, tokens: int, peak: float) -> dict[str, float]:
    """Rate of the multiply-adds of a record's stored weights, in GFLOP/s, and its share of ``peak``."""
    gflops = 2e-9 * tokens * record["stored"] * weights / record["t"]["median"]
    return {"gflops": gflops, "peak_gflops": peak, "share_of_peak": gflops / peak}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with so many threads in torch's pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fma_peak(count: int, seconds: float = 0.3, dtype: torch.dtype = torch.float32) -> float:
    """Multiply-add peak of ``count`` cores together, in GFLOP/s, measured now.

    That of bfloat16 where the CPU has dot products of them; elsewhere they are multiplied as float32.
    """
    from concurrent.futures import ThreadPoolExecutor

    values = str(dtype).removeprefix("torch.")
    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(native.fma_peak_gflops, [seconds] * count, [values] * count))


def environment() -> dict[str, Any]:
    """The facts without which a number means nothing; ``git`` is the commit that the kernels were built from."""
    target = sk.Target.detect()
    return {
        "cpu": cpu_identity(),
        "isa": target.isa,
        "cores": target.cores,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "sparsekern": sk.__version__,
        "git": doctor.native_facts().get("git") or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def write(records: Iterable[dict[str, Any]], line: Callable[[dict[str, Any]], str], path: Path | None) -> None:
    """Print a line for each record and append it to a JSON-lines file, as they come: a killed run keeps its work."""
    for record in records:
        print(line(record), flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def pair(text: str) -> tuple[int, int]:
    """Two numbers from the command line, such as ``16x1``."""
    first, second = text.split("x")
    return int(first), int(second)
