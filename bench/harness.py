"""What every benchmark shares: interleaved timing, the machine's peaks, the environment record.

Variants of one case run in turn, in rotating order, so that clock drift and noisy neighbours hit all
of them; medians are compared. Correctness is checked by the caller before anything is timed.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sparsekern as sk
from sparsekern._native import native


@dataclass(frozen=True)
class Sample:
    """Times of one variant in seconds: median, 20th and 80th percentile, number of runs."""

    median: float
    p20: float
    p80: float
    n: int

    @classmethod
    def of(cls, times: list[float]) -> Sample:
        fifths = statistics.quantiles(times, n=5)
        return cls(statistics.median(times), fifths[0], fifths[3], len(times))

    def record(self) -> dict[str, float | int]:
        return {"median": self.median, "p20": self.p20, "p80": self.p80, "n": self.n}


def interleave(variants: dict[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, Sample]:
    """Time the variants in turn, ``rounds`` times, each round starting with another one."""
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warm_up):
        for name in names:
            variants[name]()
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            before = time.perf_counter()
            variants[name]()
            times[name].append(time.perf_counter() - before)
    return {name: Sample.of(values) for name, values in times.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with so many threads in torch's pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fma_peak(count: int, seconds: float = 0.3) -> float:
    """float32 multiply-add peak of ``count`` cores together, in GFLOP/s, measured now."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(native.fma_peak_gflops, [seconds] * count))


def environment() -> dict[str, Any]:
    """The facts without which a number means nothing."""
    target = sk.Target.detect()
    commit = _git("rev-parse", "--short", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "sparsekern", "bench/*.py"))
    return {
        "cpu": _cpu_identity(target.cpu),
        "isa": target.isa,
        "cores": target.cores,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "sparsekern": sk.__version__,
        "git": commit + ("+" if dirty else ""),
        "date": datetime.date.today().isoformat(),
    }


def write(records: Iterator[dict[str, Any]], path: Path | None) -> list[dict[str, Any]]:
    """Append records to a JSON-lines file as they come (so that a killed run keeps its work)."""
    kept = []
    for record in records:
        kept.append(record)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
    return kept


def _cpu_identity(name: str) -> str:
    """Hypervisors shorten the name; family and model say which core it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name
    facts = dict(part.split(":", 1) for part in lines[:12] if ":" in part)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return f"{name} (family {facts.get('cpu family', '?')} model {facts.get('model', '?')})"


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
