"""Products with ``NM(n, m)`` of single rows: the packed weight is unfolded in registers and multiplied as a dense tile.

This saves the bytes of the zeros, not their multiply-adds. The packed image is in the order of tensor-core fragments
(layouts/fragments.py): a tile of 16 outputs by 8 groups of m inputs is read as it lies in memory, and what
``restore_values`` and ``decode_positions`` do there is done here on registers, by the same views and permutations.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import finish, multiply_add, row_and_token_tile


@triton.jit
def _for_each_input(of_groups, M: tl.constexpr):
    """``[rows, groups]`` as ``[rows, inputs]``: each number ``M`` times."""
    ROWS: tl.constexpr = of_groups.shape[0]
    GROUPS: tl.constexpr = of_groups.shape[1]
    return of_groups[:, :, None].broadcast_to(ROWS, GROUPS, M).reshape(ROWS, GROUPS * M)


@triton.jit
def _dense_tile(
    values,
    positions,
    within,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    ROW_TILES: tl.constexpr,
    GROUP_TILES: tl.constexpr,
):
    """Dense weights ``[16 ROW_TILES, 8 M GROUP_TILES]`` from the tiles at the given places.

    Args:
        values: pointers ``[ROW_TILES, GROUP_TILES, 1]`` to the values of each tile.
        positions: the same to its positions.
        within: ``[ROW_TILES, GROUP_TILES, 1]``, whether there is such a tile; others are zero.
    """
    ROWS: tl.constexpr = 16 * ROW_TILES
    GROUPS: tl.constexpr = 8 * GROUP_TILES
    # [g, q, half, pair, n] -> [pair, g, group tile, half, q, n]
    kept = tl.load(values + tl.arange(0, 128 * N)[None, None, :], mask=within, other=0.0)
    kept = kept.reshape(ROW_TILES, GROUP_TILES, 8, 4, 2, 2, N).permute(0, 5, 2, 1, 4, 3, 6).reshape(ROWS, GROUPS, N)
    # [g, half, pair, q, n], several to a byte -> the same
    PER_BYTE: tl.constexpr = 8 // BITS
    packed = tl.load(positions + tl.arange(0, 16 * N * BITS)[None, None, :], mask=within, other=0).to(tl.int32)
    fields = packed[:, :, :, None] >> (tl.arange(0, PER_BYTE) * BITS)[None, None, None, :] & ((1 << BITS) - 1)
    places = fields.reshape(ROW_TILES, GROUP_TILES, 8, 2, 2, 4, N).permute(0, 4, 2, 1, 3, 5, 6).reshape(ROWS, GROUPS, N)
    dense = tl.zeros((ROWS, GROUPS * M), kept.dtype)
    for i in tl.static_range(N):
        # A sum of one: the compiler sees that it picks a register.
        picked = tl.arange(0, N)[None, None, :] == i
        place = tl.sum(tl.where(picked, places, 0), axis=2)
        value = tl.sum(tl.where(picked, kept, 0.0), axis=2).to(kept.dtype)
        # Selected in two dimensions: Triton 3.9 fails to compile for wgmma where the product's operand is a reshape.
        at = _for_each_input(place, M) == (tl.arange(0, GROUPS * M) % M)[None, :]
        dense = tl.where(at, _for_each_input(value, M), dense)
    return dense


@triton.jit
def nm_linear_kernel(
    x,
    values,
    positions,
    bias,
    y,
    tokens,
    outputs,
    group_tiles,
    x_stride,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROW_TILES: tl.constexpr,
    GROUP_TILES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of ``activation(x @ W.T + bias)``: ``TOKENS`` tokens by ``16 ROW_TILES`` outputs.

    Args:
        x: ``[tokens, inputs]``, inputs a multiple of the ``8 M GROUP_TILES`` that are multiplied at once, each token's
            inputs side by side.
        values: ``[ceil(outputs / 16), group_tiles, 32, 4 N]``.
        positions: ``[ceil(outputs / 16), group_tiles, 8, 2, N BITS]`` uint8.
        bias: ``[outputs]``, read if ``HAS_BIAS``.
        y: ``[tokens, outputs]``, contiguous.
        tokens: number of tokens.
        outputs: number of outputs.
        group_tiles: number of tiles of 8 groups.
        x_stride: numbers from one token of ``x`` to the next.
        BITS: bits of a position.
    """
    ROWS: tl.constexpr = 16 * ROW_TILES
    STEP: tl.constexpr = 8 * M * GROUP_TILES
    row, tile = row_and_token_tile(tl.cdiv(outputs, ROWS), tl.cdiv(tokens, TOKENS))
    first_token = tile * TOKENS

    token = tl.arange(0, TOKENS)
    step = tl.arange(0, STEP)
    within = (first_token + token < tokens)[:, None]
    x_tile = x + first_token.to(tl.int64) * x_stride + token[:, None] * x_stride + step[None, :]

    row_tile = row * ROW_TILES + tl.arange(0, ROW_TILES)[:, None, None]
    group_tile = tl.arange(0, GROUP_TILES)[None, :, None]
    row_within = row_tile < tl.cdiv(outputs, 16)
    place = row_tile.to(tl.int64) * group_tiles + group_tile

    acc = tl.zeros((TOKENS, ROWS), tl.float32)
    for first in tl.range(0, group_tiles, GROUP_TILES):
        at = place + first
        there = row_within & (first + group_tile < group_tiles)
        weights = _dense_tile(
            values + at * (128 * N), positions + at * (16 * N * BITS), there, N, M, BITS, ROW_TILES, GROUP_TILES
        )
        activations = tl.load(x_tile + first * (8 * M), mask=within, other=0.0)
        acc = multiply_add(activations, weights.trans(), acc, INTERPRET)

    finish(acc, bias, y, first_token, tokens, row * ROWS, outputs, HAS_BIAS, ACTIVATION, TOKENS, ROWS)
