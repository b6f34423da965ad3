"""Which tile a program computes and how many steps it fetches ahead, by architecture and block height.

A table, not a search at run time: the same product always runs the same code, and its first call compiles one kernel.
Nothing here has been measured on a GPU. The numbers of stages follow from shared memory, and tests/triton compiles
every line for every architecture and checks that it fits and keeps its depth.
"""

from __future__ import annotations

from typing import NamedTuple

from ...layouts.fragments import TILE_GROUPS, TILE_ROWS, position_bits

KIB = 1024
MIN_CAPABILITY = 80
"""sm_80: the first whose copies into shared memory are asynchronous, which is what stages are made of."""

BLOCK_ROWS = (16, 32, 64, 128)
"""Heights of blocks that are served: the tensor cores' smallest tile, and what fits the registers of a program."""
MIN_BLOCK_COLS = 16
"""Width of blocks from which on activations are fetched in whole sectors of 32 bytes."""

MOST_ACTIVATIONS = 16 * KIB
"""Bytes of activations of one step."""

TOKENS = (16, 32, 64, 128)
TOKENS_FLOAT32 = (16, 32, 64)
"""Float32 runs on the ordinary cores, which take operands from registers: 128 tokens by 128 rows would not fit them."""

MOST_M = 16
MOST_M_FLOAT32 = 8
"""Inputs of a group for n:m: the weights of a step, 8 groups at least, are unfolded in registers."""


class Stages(NamedTuple):
    """What an architecture can fetch ahead.

    A stage holds the activations and weights of one step: 24 KiB with 64 rows and 128 tokens, 32 KiB with 128 rows.
    With ``mma.sync`` one stage fewer is held than is asked for, with ``wgmma`` and ``tcgen05`` all of them.

    Attributes:
        shared: KiB of shared memory that a program may have; a multiprocessor has 1 more.
        low: stages with up to 64 rows: as many as leave room for two programs.
        high: stages with 128 rows, where one program fills the multiprocessor and takes what there is.
    """

    shared: int
    low: int
    high: int


ARCHITECTURES = {
    80: Stages(163, 4, 5),  # 3 x 24 KiB, twice; 4 x 32
    86: Stages(99, 3, 4),  # 2 x 24 KiB, twice; 3 x 32
    89: Stages(99, 3, 4),
    90: Stages(227, 4, 6),  # 4 x 24 KiB, twice; 6 x 32
    100: Stages(227, 4, 6),
    120: Stages(99, 3, 4),
}
"""By compute capability, times ten; others are taken for the next lower one."""


TMA_WARPS = {90: 4, 100: 8}
"""Architectures for which kernels/block_tma.py is, and the warps with which Triton splits its loop."""

TMA_STAGES = {(64, 128): 8, (64, 256): 5, (128, 128): 6, (128, 256): 4}
"""Steps held by the tile of so many rows and tokens: what fits beside the outputs that are turned for storing."""

TMA_LEAST_TOKENS = 65
"""From a tile of 128 tokens on, which two warp groups share."""

MULTIPROCESSORS = 132
"""Of an H100: tiles of 256 tokens are for products that have one for each."""


class Tile(NamedTuple):
    """How a program is compiled.

    Attributes:
        rows: outputs of its tile.
        tokens: tokens of its tile.
        step: inputs that are multiplied at once.
        warps: warps of 32 threads.
        stages: as the pipeliner counts them.
    """

    rows: int
    tokens: int
    step: int
    warps: int
    stages: int


def block_tile(capability: int, rows: int, tokens: int, itemsize: int) -> Tile:
    """The tile of a product with blocks of ``rows`` rows and numbers of ``itemsize`` bytes."""
    step, stages = _step(itemsize), _stages(capability)
    if itemsize == 4:
        held = _token_tile(tokens, TOKENS_FLOAT32, 128)
        return Tile(rows, held, step, 8 if rows * held == 128 * 64 else 4, stages.low)
    held = _token_tile(tokens, TOKENS, 128)
    return Tile(rows, held, step, 8 if rows * held == 128 * 128 else 4, stages.high if rows == 128 else stages.low)


def tma_tile(
    capability: int, rows: int, cols: int, shape: tuple[int, int], itemsize: int, activation: str
) -> Tile | None:
    """The tile of the kernel that fetches by TMA, or None where the other one serves.

    It takes tiles whose step lies within a block and whose rows are those of whole swizzles. Other outputs than
    multiples of 16 would be stored one by one, for which the registers do not suffice.

    Args:
        capability: of the GPU, times ten, such as 90.
        rows: of a block.
        cols: of a block.
        shape: of the output, ``(tokens, outputs)``.
        itemsize: bytes of a number.
        activation: what is applied to the sums.
    """
    (tokens, outputs), step = shape, _step(itemsize)
    known = max((known for known in TMA_WARPS if known <= capability < 120), default=None)
    if known is None or itemsize != 2 or cols % step or tokens < TMA_LEAST_TOKENS or outputs % 16:
        return None
    if (rows, 128) not in TMA_STAGES:
        return None
    programs = -(-outputs // rows) * -(-tokens // 256)
    # The error function of 256 x 128 sums does not fit the registers.
    wide = programs >= MULTIPROCESSORS and not (rows == 128 and activation == "gelu")
    held = 256 if wide else 128
    return Tile(rows, held, step, TMA_WARPS[known], TMA_STAGES[rows, held])


def nm_tile(capability: int, m: int, tokens: int, itemsize: int) -> Tile:
    """The tile of a product with n of every ``m`` inputs and numbers of ``itemsize`` bytes."""
    step, stages = max(8 * m, _step(itemsize)), _stages(capability).low
    if itemsize == 4:
        # Each thread holds whole rows of the unfolded weights, so many threads share few of them.
        return Tile(32, _token_tile(tokens, TOKENS_FLOAT32[:2], step * itemsize), step, 8, stages)
    held = _token_tile(tokens, TOKENS, step * itemsize)
    return Tile(64, held, step, 8 if held == 128 else 4, stages)


def block_constants(tile: Tile, cols: int) -> dict[str, int]:
    """The compile-time arguments of the block kernels that say what they hold."""
    return {"ROWS": tile.rows, "COLS": cols, "TOKENS": tile.tokens, "STEP": tile.step}


def nm_constants(tile: Tile, n: int, m: int) -> dict[str, int]:
    """The same of ``nm_linear_kernel``."""
    return {
        "N": n, "M": m, "BITS": position_bits(m), "TOKENS": tile.tokens,
        "ROW_TILES": tile.rows // TILE_ROWS, "GROUP_TILES": tile.step // (TILE_GROUPS * m),
    }  # fmt: skip


def _step(itemsize: int) -> int:
    """Inputs in the 128 bytes of a row that shared memory swizzles as one."""
    return 128 // itemsize


def _token_tile(tokens: int, sizes: tuple[int, ...], step_bytes: int) -> int:
    """The smallest of the sizes that holds all tokens, or else the largest whose activations fit a step."""
    fitting = [size for size in sizes if size * step_bytes <= MOST_ACTIVATIONS]
    return next((size for size in fitting if tokens <= size), fitting[-1])


def _stages(capability: int) -> Stages:
    return ARCHITECTURES[max(known for known in ARCHITECTURES if known <= capability)]
