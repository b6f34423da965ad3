"""Latency of several models, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Latency:
    """Times of one function, in seconds.

    Attributes:
        median: of all rounds.
        quartiles: first and third.
        times: one for each round.
    """

    median: float
    quartiles: tuple[float, float]
    times: tuple[float, ...]

    @classmethod
    def of(cls, times: list[float]) -> Latency:
        """Sum up the times of at least two rounds."""
        first, _, third = statistics.quantiles(times, n=4)
        return cls(statistics.median(times), (first, third), tuple(times))

    @property
    def rounds(self) -> int:
        """Number of times."""
        return len(self.times)


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Time functions in turn, so that a drifting clock or a noisy neighbour hits all of them.

    Args:
        functions: by name; each round starts with another one.
        rounds: how many times each is called, after two warm-up calls.
        seconds: stop early, but not before five rounds, when so much time has passed.
        progress: called after each round.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for name in names * 2:
            functions[name]()
        start = time.perf_counter()
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                before = time.perf_counter()
                functions[name]()
                times[name].append(time.perf_counter() - before)
            progress()
            if turn >= 4 and time.perf_counter() - start > seconds:
                break
    return {name: Latency.of(values) for name, values in times.items()}
