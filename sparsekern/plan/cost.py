"""What a product costs with a kernel: a roofline with loads, from what its tile holds and what the host can do.

    max(multiply-adds, loads, L2, memory) + what surrounds the loops + moving activations + the call

It only has to rank the kernels that could serve a layer. How far off it is stands in ``docs/kernels.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .rates import Rates
from .registry import Tile

# In latencies of a multiply-add, of some four cycles each; found on Zen 4 and meant for any core that can look ahead.
STRIP = 5.5
"""Beginning and ending the loop of one tile, with one mispredicted branch."""
TRANSPOSED = 1.6
"""Bringing a vector of sums back into row-major order."""

OVERLAP = 2.5
"""Power of the mean by which the parts of outputs and vector kernels add up: a splat into a register of its own takes
an issue slot that a multiply-add could have had, so they overlap imperfectly. Of others, and of one vector of 16
outputs, whose splats AVX-512 has as operands of the multiply-adds, the longest part counts."""
SINGLE_SLACK = 1.6
"""Single rows take so much longer than their loads, whose addresses come from the weight."""
MOVED = 2.6
"""Times that 8 bytes pass through L2 for each activation that is packed, and for each output that is written."""
CALL = 5.7e-6
"""Seconds of calling an op."""

L1 = 32 * 1024
L2 = 512 * 1024
K_TILE = 24 * 1024
"""Bytes of a panel that stay in an L1 of 32 KiB in the kernels of single rows; in a larger one it is more."""
WIDENED_TOKENS = 256
"""bfloat16 weights are widened anew for so many tokens."""


@dataclass(frozen=True)
class Work:
    """A product, as far as it costs something.

    Attributes:
        out_features: outputs.
        in_features: inputs.
        density: share of the weights that are stored, padding included.
        tokens: rows of the activation, one at least.
        bfloat16: whether all numbers are stored so, two bytes each, rather than as float32.
    """

    out_features: int
    in_features: int
    density: float
    tokens: int
    bfloat16: bool = False

    @property
    def stored(self) -> float:
        """Number of stored weights."""
        return self.density * self.out_features * self.in_features


@dataclass(frozen=True)
class Cost:
    """The time that the model predicts, and what most of it goes to.

    Attributes:
        seconds: of one call on one thread.
        bound: ``multiply-adds``, ``loads``, ``L2``, ``memory``, ``tiles`` (beginning and ending loops), ``moving``
            (packing inputs, writing outputs), ``widening`` or ``call``.
    """

    seconds: float
    bound: str


def predict(tile: Tile, work: Work, rates: Rates) -> Cost:
    """The cost of a product on one thread.

    Args:
        tile: of the kernel.
        work: the product.
        rates: of the host, at the instruction set of the kernel.

    Returns:
        The time and what bounds it. Several threads divide it, so they do not change which kernel is best.
    """
    loops: dict[str, float] = {"multiply-adds": 0.0, "loads": 0.0, "L2": 0.0}
    loop = tiles = 0.0
    for panels, tokens in _panels(tile, work.tokens):
        part = _Panel.of(tile, work, tokens)
        seconds = part.seconds(tile, rates)
        for name, value in seconds.items():
            loops[name] += panels * part.steps * value
        loop += panels * part.steps * _together(tile, seconds)
        tiles += panels * part.strips * (STRIP + part.transposed * TRANSPOSED) * rates.latency
    itemsize = 2 if work.bfloat16 else 4
    weight_bytes = itemsize * work.stored
    memory = weight_bytes / rates.read(weight_bytes)
    packed = work.tokens * work.in_features if tile.family in ("outputs", "tokens", "single") else 0
    moving = MOVED * 8 * (packed + work.tokens * work.out_features) / rates.read(L2)
    widening = _widened_numbers(work) / rates.widened if work.bfloat16 else 0.0
    parts = {**loops, "memory": memory, "tiles": tiles, "moving": moving, "widening": widening, "call": CALL}
    total = _mean_of_power(loop, memory) + tiles + moving + widening + CALL
    return Cost(total, max(parts, key=lambda name: parts[name]))


def _panels(tile: Tile, tokens: int) -> Iterator[tuple[int, int]]:
    """How many panels there are of how many tokens: panels differ by one quantum at most."""
    quantum = _quantum(tile)
    quanta = math.ceil(tokens / quantum)
    panels = math.ceil(tokens / tile.tokens)
    least, more = divmod(quanta, panels)
    for count, size in ((panels - more, least), (more, least + 1)):
        if count and size:
            yield count, size * quantum


def _quantum(tile: Tile) -> int:
    """A panel is as wide as a multiple of so many tokens."""
    if tile.family in ("tokens", "single"):
        return tile.lanes
    return 4 if tile.family == "outputs" and tile.lanes == 16 else 1


@dataclass(frozen=True)
class _Panel:
    """One panel: its strips, and what a step of their loop takes, for each input that a strip has.

    Each multiply-add of a step that is ``chained`` waits for one of the step before. ``transposed`` is the number of
    vectors of sums that a strip ends with and that lie across y.
    """

    strips: float
    steps: float
    multiply_adds: float
    loads: float
    l2_bytes: float = 0
    chained: bool = False
    transposed: int = 0

    @classmethod
    def of(cls, tile: Tile, work: Work, tokens: int) -> _Panel:
        inputs = work.density * work.in_features
        strips = math.ceil(work.out_features / tile.outputs)
        if tile.family in ("outputs", "vector"):
            vectors = tile.outputs // tile.lanes
            # Fetching weights ahead counts as one load, of two lines as well: so it agrees with what is measured.
            loads = vectors + tokens + 1
            return cls(strips, strips * inputs, vectors * tokens, loads, 4 * tile.outputs)
        vectors = math.ceil(tokens / tile.lanes)
        row = 4 * vectors * tile.lanes
        if tile.family == "tokens":
            from_l2 = row if row * work.in_features > L1 else 0
            loads = tile.outputs + vectors
            return cls(strips, strips * inputs, tile.outputs * vectors, loads, from_l2, True, vectors)
        # One weight of two or four that are loaded together.
        k_tiles = max(1, math.ceil(row * work.in_features / K_TILE))
        return cls(strips * k_tiles, strips * inputs, vectors, vectors + 0.5)

    def seconds(self, tile: Tile, rates: Rates) -> dict[str, float]:
        """Of one step, for each thing that may bound it."""
        waiting = rates.latency if self.chained else 0.0
        return {
            "multiply-adds": max(self.multiply_adds / rates.multiply_adds[tile.lanes], waiting),
            "loads": self.loads / rates.loads[tile.lanes],
            "L2": self.l2_bytes / rates.read(L2),
        }


def _together(tile: Tile, seconds: dict[str, float]) -> float:
    if tile.family == "vector" or (tile.family == "outputs" and not tile.outputs == tile.lanes == 16):
        return _mean_of_power(*seconds.values())
    return max(seconds.values()) * (SINGLE_SLACK if tile.family == "single" else 1)


def _mean_of_power(*parts: float) -> float:
    return float(sum(part**OVERLAP for part in parts) ** (1 / OVERLAP))


def _widened_numbers(work: Work) -> float:
    batches = math.ceil(work.tokens / WIDENED_TOKENS)
    return batches * work.stored + work.tokens * (work.in_features + work.out_features)
