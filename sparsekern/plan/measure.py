"""How long calls take on this machine, measured side by side, and what a packed layer gains so."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    """A layer with a packed weight, such as ``SparseLinear``."""

    name: str

    @property
    def packed(self) -> PackedWeight:
        """Its weight."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """``[tokens, in]`` to ``[tokens, out]``, or images to images."""


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


def time_linear(dense: nn.Linear, sparse: PackedLayer, tokens: int, then: nn.Module | None = None) -> Timing:
    """Check a packed layer's outputs, then time it against the dense layer, both as a model calls them.

    Dense is what the model runs now, eager PyTorch. Compiling may make it a little faster, but takes
    longer for each size than everything here; ``bench/linear.py`` measures that too.

    Args:
        dense: the layer as it is.
        sparse: the layer that would take its place, with the sparsity pattern that gets timed.
        tokens: rows of the activation.
        then: what the model calls with the outputs of the dense layer, and the packed one has fused.

    Raises:
        RuntimeError: the packed layer's outputs are not those of its weight.
    """
    return _time(dense, sparse, _numbers((tokens, dense.in_features), sparse), f"{tokens} tokens", then)


def time_conv2d(
    dense: nn.Conv2d,
    sparse: PackedLayer,
    shape: Sequence[int],
    layout: torch.memory_format,
    then: nn.Module | None = None,
) -> Timing:
    """As :func:`time_linear`, for a convolution.

    Args:
        dense: the layer as it is.
        sparse: the layer that would take its place.
        shape: ``[batch, channels, height, width]`` of its input.
        layout: how the input lies in memory.
        then: as there.

    Raises:
        RuntimeError: the packed layer's outputs are not those of its weight.
    """
    x = _numbers(shape, sparse).contiguous(memory_format=layout)
    return _time(dense, sparse, x, f"an input of {list(shape)}", then)


def _numbers(shape: Sequence[int], sparse: PackedLayer) -> Tensor:
    values = sparse.packed.values
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(values.device, values.dtype)


def _time(dense: nn.Module, sparse: PackedLayer, x: Tensor, size: str, then: nn.Module | None) -> Timing:
    _check(dense, sparse, x, size, then or nn.Identity())
    times = interleave(
        {"dense": lambda: dense(x) if then is None else then(dense(x)), "sparse": lambda: sparse(x)},
        ROUNDS,
        shortest=SHORTEST,
        longest=LONGEST,
    )
    ratio = times["dense"].over(times["sparse"])
    return Timing(times["dense"].median, times["sparse"].median, ratio.median, ratio.spread, ratio.rounds)


def _check(dense: nn.Module, sparse: PackedLayer, x: Tensor, size: str, then: nn.Module) -> None:
    """Compare with the dense layer in float64."""
    with torch.inference_mode():
        found = sparse(x)
        tensors = {name: parameter.double() for name, parameter in dense.named_parameters()}
        tensors["weight"] = sparse.packed.to_dense().double()
        expected = then(torch.func.functional_call(dense, tensors, (x.double(),))).to(x.dtype)
        # Half of the digits: rounding never costs so many, and a wrong kernel costs all.
        allowed = math.sqrt(torch.finfo(x.dtype).eps) * float(expected.abs().max())
        close = torch.isclose(found, expected, rtol=0, atol=allowed, equal_nan=True)
    if not close.all():
        raise RuntimeError(
            f"{sparse.name}: expected the outputs of its dense weight within {allowed:.1e} at {size}, found a "
            f"difference of {float((found - expected).abs().max()):.1e}; please report this fault of the kernel"
        )
