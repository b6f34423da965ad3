"""Who multiplies on a GPU: a model of its arithmetic, L2, shared memory and memory, not a measurement.

CUDA kernels, Triton kernels and unpacking with a dense product are ranked by the slowest of what each of them needs.
The model errs towards the more preferred one: its constants are data sheets' and others' measurements, so another must
promise to be faster by ``MARGIN``.

Source of the L2 and shared-memory terms: docs/gpu.md. Each kept block is loaded with its activations once for every
tile of tokens; in the CUDA kernels low blocks share the activations of the tile of outputs that they lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..layouts import NM, Block, Granularity

TILE = 128
"""Outputs and tokens that a thread block makes."""

FEW_TOKENS = 16
"""Up to here it is the bytes of the weights that count, of which a sparse weight has fewer."""

SLICE = 0.9
"""What inputs cost a tile that only some of its strips have, of what they cost with all: instructions are issued for
the copies and barriers all the same."""

WARPGROUP_ROWS = 64
"""Rows of the least tile of ``wgmma`` and ``tcgen05``; with lower blocks Triton compiles ``mma.sync``."""

NM_ROWS = 64
"""Outputs of a tile of the Triton kernel of n:m."""

WIDE_TILE = 256
"""Tokens of a program of Triton that fetches by TMA, where there is one for each multiprocessor."""

WIDE_PROGRAMS = 132

WARP = (64, 32)
"""Outputs and tokens that a warp of ``mma.sync`` multiplies out of shared memory."""

MARGIN = 1.1


@dataclass(frozen=True)
class Gpu:
    """Rates of an architecture, of its largest card.

    Attributes:
        dense: of the library's dense 16-bit products, in 1e12 FLOP/s.
        mma: of the instruction that the CUDA kernels use.
        dot: of Triton's ``tl.dot`` on full tiles, which compiles to what the architecture has.
        fma: of float32 on the ordinary cores.
        l2: bytes out of the L2 cache, in 1e12 a second.
        shared: bytes out of shared memory, the same.
        memory: bytes out of memory, the same.
        tma: whether Triton's programs of blocks of 64 and 128 rows fetch by TMA.
    """

    dense: float
    mma: float
    dot: float
    fma: float
    l2: float
    shared: float
    memory: float
    tma: bool = False


GPUS = {
    80: Gpu(dense=250, mma=230, dot=210, fma=19, l2=4.0, shared=19, memory=1.5),
    86: Gpu(dense=120, mma=110, dot=100, fma=31, l2=2.5, shared=18, memory=0.8),
    89: Gpu(dense=160, mma=150, dot=135, fma=80, l2=4.0, shared=41, memory=0.9),
    # mma.sync instead of wgmma: some 60 % of the tensor cores' rate.
    90: Gpu(dense=700, mma=420, dot=560, fma=62, l2=5.5, shared=30, memory=3.0, tma=True),
    100: Gpu(dense=1600, mma=500, dot=1100, fma=75, l2=8.0, shared=35, memory=7.0, tma=True),
    120: Gpu(dense=200, mma=190, dot=150, fma=100, l2=5.0, shared=52, memory=1.5),
}
"""By compute capability; another one is taken for the next older."""

FMA_SHARE = 0.6
"""Of the ordinary cores' rate, what a Triton kernel reaches in float32; the library's dense product reaches all."""


@dataclass(frozen=True)
class Product:
    """A product with a sparse weight on a GPU.

    Attributes:
        granularity: of the weight.
        shape: ``(out, in)``.
        stored: values that are stored.
        tokens: rows of the activation.
        itemsize: bytes of a number.
    """

    granularity: Granularity
    shape: tuple[int, int]
    stored: int
    tokens: int
    itemsize: int = 2

    @property
    def padded(self) -> int:
        """The tokens of whole tiles."""
        return -(-self.tokens // TILE) * TILE

    @property
    def rows(self) -> int:
        """Outputs that share the inputs of a block."""
        return self.granularity.rows if isinstance(self.granularity, Block) else 1

    def memory_bytes(self, weights: int) -> int:
        """Bytes of so many weights, of the activations and of the outputs."""
        return self.itemsize * (weights + self.tokens * sum(self.shape))


def fastest(product: Product, capability: int, offered: Sequence[str]) -> str:
    """Which of the back ends is to multiply.

    Args:
        product: what is multiplied.
        capability: of the GPU, such as 80.
        offered: names of those that can, the most preferred first.
    """
    if product.tokens <= FEW_TOKENS:
        return offered[0]
    known = [arch for arch in GPUS if arch <= capability]
    gpu = GPUS[max(known)] if known else GPUS[80]
    seconds = {name: SECONDS[name](product, gpu) for name in offered if name in SECONDS}
    best = min(seconds, key=lambda name: seconds[name], default=offered[0])
    first = seconds.get(offered[0])
    return best if first is not None and first > MARGIN * seconds[best] else offered[0]


def dense_seconds(product: Product, gpu: Gpu) -> float:
    """Of unpacking and a dense product."""
    outputs, inputs = product.shape
    unpack = product.itemsize * (product.stored + outputs * inputs) / gpu.memory
    rate = gpu.dense if product.itemsize == 2 else gpu.fma
    multiply = 2 * outputs * inputs * product.tokens / rate
    return 1e-12 * (unpack + max(multiply, product.memory_bytes(outputs * inputs) / gpu.memory))


def cuda_seconds(product: Product, gpu: Gpu) -> float:
    """Of the CUDA kernel of many tokens."""
    outputs, inputs = product.shape
    stored, padded = product.stored, product.padded
    tiles = -(-outputs // TILE)
    activations = _share_of_inputs(product) * inputs * tiles
    # mma.sp makes twice the dense product's multiply-adds in the time, of which half are of zeros.
    issued = 0 if isinstance(product.granularity, NM) else SLICE * activations * TILE
    multiplied = max(stored, issued) * padded
    from_shared = product.itemsize * multiplied * (1 / WARP[0] + 1 / WARP[1])
    return _slowest(
        multiply=2 * multiplied / gpu.mma,
        shared=from_shared / gpu.shared,
        l2=product.itemsize * (stored * padded / TILE + activations * padded) / gpu.l2,
        memory=product.memory_bytes(stored) / gpu.memory,
    )


def triton_seconds(product: Product, gpu: Gpu) -> float:
    """Of the Triton kernel of many tokens: a program multiplies blocks, or unfolds n:m and multiplies densely."""
    outputs, inputs = product.shape
    is_block = isinstance(product.granularity, Block)
    rows = min(TILE, product.rows) if is_block else NM_ROWS
    multiplied = (product.stored if is_block else outputs * inputs) * product.padded
    dot = gpu.dot if rows >= WARPGROUP_ROWS else min(gpu.dot, gpu.mma)
    rate = dot if product.itemsize == 2 else FMA_SHARE * gpu.fma
    tile = WIDE_TILE if gpu.tma and _is_wide(product) else TILE
    return _slowest(
        multiply=2 * multiplied / rate,
        shared=product.itemsize * multiplied * (1 / rows + 1 / tile) / gpu.shared,
        l2=product.itemsize * (product.stored * product.padded / tile + multiplied / rows) / gpu.l2,
        memory=product.memory_bytes(product.stored) / gpu.memory,
    )


SECONDS: dict[str, Callable[[Product, Gpu], float]] = {
    "cuda": cuda_seconds,
    "triton": triton_seconds,
    "reference": dense_seconds,
}


def _slowest(**teraunits: float) -> float:
    return 1e-12 * max(teraunits.values())


def _is_wide(product: Product) -> bool:
    """Whether Triton's programs are of the wide tile, where there is TMA."""
    block = product.granularity
    if not isinstance(block, Block) or product.itemsize != 2 or block.rows not in (64, TILE) or block.cols % 64:
        return False
    return -(-product.shape[0] // block.rows) * -(-product.tokens // WIDE_TILE) >= WIDE_PROGRAMS


def _share_of_inputs(product: Product) -> float:
    """Of the inputs that a tile of outputs loads: those that any of its strips has, at random."""
    if not isinstance(product.granularity, Block):
        return 1.0
    strips = max(1, TILE // product.rows)
    density = min(1.0, product.stored / (product.shape[0] * product.shape[1]))
    return 1 - (1 - density) ** strips
