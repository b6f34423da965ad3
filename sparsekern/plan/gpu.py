"""Whether a sparse product on a GPU is worth it: a model of tensor cores, L2 and memory, not a measurement.

Where it says no, the weight is unpacked and multiplied densely. It errs towards the kernels: they are left only
where the model puts them behind dense by ``MARGIN``, because its constants are data sheets' and others' measurements.

Source of the L2 term: each kept block is loaded with its activations once for every tile of tokens, and low blocks
share the activations of the tile of outputs that they lie in (docs/gpu.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..layouts import NM, Block, Granularity

TILE = 128
"""Outputs and tokens that a thread block makes."""

FEW_TOKENS = 16
"""Up to here it is the bytes of the weights that count, of which a sparse weight has fewer."""

SLICE = 0.9
"""What inputs cost a tile that only some of its strips have, of what they cost with all: instructions are issued for
the copies and barriers all the same."""

MARGIN = 1.1


@dataclass(frozen=True)
class Gpu:
    """Rates of an architecture, of its largest card.

    Attributes:
        dense: of the library's dense 16-bit products, in 1e12 FLOP/s.
        mma: of the instruction that our kernels use.
        l2: bytes out of the L2 cache, in 1e12 a second.
        memory: bytes out of memory, the same.
    """

    dense: float
    mma: float
    l2: float
    memory: float


GPUS = {
    80: Gpu(dense=250, mma=230, l2=4.0, memory=1.5),
    86: Gpu(dense=120, mma=110, l2=2.5, memory=0.8),
    89: Gpu(dense=160, mma=150, l2=4.0, memory=0.9),
    # mma.sync instead of wgmma: some 60 % of the tensor cores' rate.
    90: Gpu(dense=700, mma=420, l2=5.5, memory=3.0),
    100: Gpu(dense=1600, mma=500, l2=8.0, memory=7.0),
    120: Gpu(dense=200, mma=190, l2=5.0, memory=1.5),
}
"""By compute capability; another one is taken for the next older."""


def pays(granularity: Granularity, shape: tuple[int, int], stored: int, tokens: int, capability: int) -> bool:
    """Whether a kernel is expected to be no slower than unpacking and multiplying densely.

    Args:
        granularity: a block whose sides are multiples of 16, or 2:4.
        shape: ``(out, in)``.
        stored: values that are stored.
        tokens: rows of the activation.
        capability: of the GPU, such as 80.
    """
    if tokens <= FEW_TOKENS:
        return True
    known = [arch for arch in GPUS if arch <= capability]
    gpu = GPUS[max(known)] if known else GPUS[80]
    return sparse_seconds(granularity, shape, stored, tokens, gpu) <= MARGIN * dense_seconds(shape, stored, tokens, gpu)


def dense_seconds(shape: tuple[int, int], stored: int, tokens: int, gpu: Gpu) -> float:
    """Of unpacking and a dense product."""
    outputs, inputs = shape
    unpack = 2 * (stored + outputs * inputs) / gpu.memory
    moved = 2 * (outputs * inputs + tokens * (inputs + outputs)) / gpu.memory
    return 1e-12 * (unpack + max(2 * outputs * inputs * tokens / gpu.dense, moved))


def sparse_seconds(granularity: Granularity, shape: tuple[int, int], stored: int, tokens: int, gpu: Gpu) -> float:
    """Of the kernel of many tokens: the slowest of tensor cores, L2 and memory."""
    outputs, inputs = shape
    padded = -(-tokens // TILE) * TILE
    # mma.sp makes twice the dense product's multiply-adds in the time, of which half are of zeros.
    tiles = -(-outputs // TILE)
    activations = _share_of_inputs(granularity, stored / (outputs * inputs)) * inputs * tiles
    issued = 0 if isinstance(granularity, NM) else SLICE * activations * TILE
    multiply = 2 * max(stored, issued) * padded / gpu.mma
    from_l2 = 2 * (stored * padded / TILE + activations * padded) / gpu.l2
    from_memory = 2 * (stored + tokens * (inputs + outputs)) / gpu.memory
    return 1e-12 * max(multiply, from_l2, from_memory)


def _share_of_inputs(granularity: Granularity, density: float) -> float:
    """Of the inputs that a tile of outputs loads: those that any of its strips has, at random."""
    if isinstance(granularity, NM) or not isinstance(granularity, Block):
        return 1.0
    strips = max(1, TILE // granularity.rows)
    return 1 - (1 - min(1.0, density)) ** strips
