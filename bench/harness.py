"""What every benchmark shares: the machine's peak, the environment record, the results file.

Correctness is checked by the caller before anything is timed; ``sparsekern.plan.interleave`` times.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import sparsekern as sk
from sparsekern._native import native
from sparsekern.cli import doctor


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
    """The facts without which a number means nothing; ``git`` is the commit that the kernels were built from."""
    target = sk.Target.detect()
    return {
        "cpu": _cpu_identity(target.cpu),
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


def _cpu_identity(name: str) -> str:
    """Hypervisors shorten the name; family and model say which core it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name
    facts = dict(part.split(":", 1) for part in lines[:12] if ":" in part)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return f"{name} (family {facts.get('cpu family', '?')} model {facts.get('model', '?')})"
