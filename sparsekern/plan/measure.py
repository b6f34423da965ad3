"""How long calls take on this machine, measured side by side, and what a packed layer gains so."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..layouts import PackedWeight

ROUNDS = 30
LEAST_ROUNDS = 5
"""Of functions so slow that the time is up sooner. Fewer have no spread to speak of."""

SHORTEST, LONGEST = 0.05, 2.0
"""Seconds for which a layer is timed: more rounds where calls are short, fewer where they are long."""


@dataclass(frozen=True)
class Sample:
    """What was measured in each round: the seconds of one function, or the ratio of two.

    Attributes:
        values: one for each round, in order.
    """

    values: tuple[float, ...]

    @property
    def rounds(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third."""
        if self.rounds == 1:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """Distance of the quartiles."""
        first, third = self.quartiles
        return third - first

    def over(self, other: Sample) -> Sample:
        """The ratio to another function's time of the same round.

        What slows a whole round down cancels out, so its median stands more noise than a ratio of medians.
        """
        return Sample(tuple(ours / theirs for ours, theirs in zip(self.values, other.values, strict=True)))

    def record(self) -> dict[str, float | int]:
        """Plain data."""
        first, third = self.quartiles
        return {"median": self.median, "q1": first, "q3": third, "n": self.rounds}


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    shortest: float = 0.0,
    longest: float = math.inf,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Sample]:
    """Time functions in turn, so that a drifting clock or a noisy neighbour hits all of them.

    Args:
        functions: by name; each round starts with another one. Each is called twice before.
        rounds: number of rounds.
        shortest: seconds for which to go on even when the rounds are done.
        longest: seconds after which to stop early, though not before ``LEAST_ROUNDS``.
        progress: called after each round.

    Returns:
        Seconds of each function, by name.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for name in names * 2:
            functions[name]()
        start, done, elapsed = time.perf_counter(), 0, 0.0
        while (done < rounds or elapsed < shortest) and (done < LEAST_ROUNDS or elapsed < longest):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                function = functions[name]
                before = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - before)
            progress()
            done += 1
            elapsed = time.perf_counter() - start
    return {name: Sample(tuple(values)) for name, values in times.items()}


class PackedLayer(Protocol):
    """A layer that multiplies with a packed weight, such as ``SparseLinear``."""

    name: str

    @property
    def packed(self) -> PackedWeight:
        """Its weight."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """``[tokens, in]`` to ``[tokens, out]``."""


@dataclass(frozen=True)
class Timing:
    """A packed layer against its dense one.

    Attributes:
        dense: seconds of a call of the dense layer, median.
        sparse: seconds of a call of the packed layer, median.
        speedup: dense time over packed time within a round, median; above 1 the packed layer is faster.
        spread: distance of the quartiles of that ratio.
        rounds: number of interleaved rounds.
    """

    dense: float
    sparse: float
    speedup: float
    spread: float
    rounds: int


def time_linear(dense: nn.Linear, sparse: PackedLayer, tokens: int) -> Timing:
    """Check a packed layer's outputs, then time it against the dense layer, both as a model calls them.

    Dense is what the model runs now, eager PyTorch. Compiling may make it a little faster, but takes
    longer for each size than everything here; ``bench/linear.py`` measures that too.

    Args:
        dense: the layer as it is.
        sparse: the layer that would take its place, with the sparsity pattern that gets timed.
        tokens: rows of the activation.

    Raises:
        RuntimeError: the packed layer's outputs are not those of its weight.
    """
    weight = sparse.packed.values
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, dense.in_features, generator=generator).to(weight.device, weight.dtype)
    _check(sparse, x, dense.bias)
    times = interleave(
        {"dense": lambda: dense(x), "sparse": lambda: sparse(x)}, ROUNDS, shortest=SHORTEST, longest=LONGEST
    )
    ratio = times["dense"].over(times["sparse"])
    return Timing(times["dense"].median, times["sparse"].median, ratio.median, ratio.spread, ratio.rounds)


def _check(sparse: PackedLayer, x: Tensor, bias: Tensor | None) -> None:
    """Compare with the dense product in float64."""
    with torch.inference_mode():
        found = sparse(x)
        product = x.double() @ sparse.packed.to_dense().double().T
        expected = (product if bias is None else product + bias).to(x.dtype)
        # Half of the digits: rounding never costs so many, and a wrong kernel costs all.
        allowed = math.sqrt(torch.finfo(x.dtype).eps) * float(expected.abs().max())
        close = torch.isclose(found, expected, rtol=0, atol=allowed, equal_nan=True)
    if not close.all():
        raise RuntimeError(
            f"{sparse.name}: expected the outputs of its dense weight within {allowed:.1e} at {len(x)} tokens, found a "
            f"difference of {float((found - expected).abs().max()):.1e}; please report this fault of the kernel"
        )
