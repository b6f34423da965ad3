"""What a layer costs on this machine, dense and packed, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..layouts import PackedWeight
from .registry import Request
from .select import select

MIN_ROUNDS = 30
MIN_SECONDS = 0.05
MAX_SECONDS = 2.0


@dataclass(frozen=True)
class Timing:
    """Interleaved timings of one layer, in seconds.

    Attributes:
        dense: median time of ``F.linear`` with the dense weight.
        sparse: median time with the packed weight.
        spread: interquartile range of the ratio dense / sparse of neighbouring runs.
        rounds: number of interleaved pairs.
    """

    dense: float
    sparse: float
    spread: float
    rounds: int

    @property
    def speedup(self) -> float:
        """Dense time over packed time; above 1 the packed layer is faster."""
        return self.dense / self.sparse


def time_linear(packed: PackedWeight, tokens: int, bias: bool) -> Timing:
    """Time a packed linear layer against dense PyTorch at its real number of tokens.

    Args:
        packed: the weight; its own sparsity pattern is what gets timed.
        tokens: rows of the activation.
        bias: whether the layer has a bias.
    """
    n, k = packed.shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, k, generator=generator).to(packed.device, packed.dtype)
    dense = torch.randn(n, k, generator=generator).to(packed.device, packed.dtype)
    b = torch.randn(n, generator=generator).to(packed.device, packed.dtype) if bias else None
    backend = select(Request(packed.granularity, packed.shape, packed.dtype, packed.device.type))
    tensors = packed.tensors
    return interleave(
        lambda: F.linear(x, dense, b),
        lambda: backend.linear(x, packed.granularity, packed.shape, tensors, b, "none"),
    )


def interleave(dense: Callable[[], object], sparse: Callable[[], object]) -> Timing:
    """Time two callables in turn, so that a drifting clock or a noisy neighbour hits both."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for function in (dense, sparse, dense, sparse):
            function()
        start = time.perf_counter()
        rounds = 0
        while True:
            for function, record in zip((dense, sparse), times, strict=True):
                before = time.perf_counter()
                function()
                record.append(time.perf_counter() - before)
            rounds += 1
            elapsed = time.perf_counter() - start
            if elapsed > MAX_SECONDS or (rounds >= MIN_ROUNDS and elapsed > MIN_SECONDS):
                break
    ratios = [d / s for d, s in zip(*times, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if rounds > 1 else [ratios[0]] * 3
    return Timing(statistics.median(times[0]), statistics.median(times[1]), quartiles[2] - quartiles[0], rounds)
