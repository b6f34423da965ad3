"""The order of tensor-core fragments: how n of m weights of single rows are stored.

A tile is 16 outputs by 8 groups of m inputs. In it, row ``g + 8 pair`` (g < 8, pair < 2) and group
``q + 4 half`` (q < 4, half < 2) have the n values ``[4 g + q, half, pair]`` of ``[32, 2, 2, n]``. For 2:4 this is
operand A of ``mma.sp.m16n8k32`` (PTX ISA 9.7.14): lane ``4 g + q`` loads its 8 values at once. Positions of a
row's four groups lie next to each other, so that for 2:4 each of the two words of ``g`` is its metadata operand.

On a CPU the rows g and g + 8 make a vector of whatever four inputs they choose from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .granularity import Parts, require

TILE_ROWS = 16
TILE_GROUPS = 8


def position_bits(m: int) -> int:
    """Bits in which a position below ``m`` is stored: 2, 4 or 8."""
    return 2 if m <= 4 else 4 if m <= 16 else 8


def tiles(grid: tuple[int, int]) -> tuple[int, int]:
    """Numbers of row tiles and group tiles that cover ``grid`` rows and groups."""
    return -(-grid[0] // TILE_ROWS), -(-grid[1] // TILE_GROUPS)


def order_values(values: Tensor) -> Tensor:
    """``[rows, groups, n]`` as ``[row tiles, group tiles, 32, 4 n]``, padded with zeros."""
    tiled = _tile(values)
    row_tiles, _, _, group_tiles, _, _, n = tiled.shape
    return tiled.permute(0, 3, 2, 5, 4, 1, 6).reshape(row_tiles, group_tiles, 32, 4 * n)


def restore_values(ordered: Tensor, n: int) -> Tensor:
    """``[padded rows, padded groups, n]`` from what :func:`order_values` returns."""
    row_tiles, group_tiles = ordered.shape[:2]
    tiled = ordered.view(row_tiles, group_tiles, 8, 4, 2, 2, n)
    return tiled.permute(0, 5, 2, 1, 4, 3, 6).reshape(row_tiles * TILE_ROWS, group_tiles * TILE_GROUPS, n)


def encode_positions(positions: Tensor, m: int) -> Tensor:
    """Positions ``[rows, groups, n]`` in [0, m) as uint8 ``[row tiles, group tiles, 8, 2, n bits]``.

    Padded rows and groups are given the positions 0 to n - 1.
    """
    tiled = _tile(positions.to(torch.uint8) + 1)
    row_tiles, _, _, group_tiles, _, _, n = tiled.shape
    first = torch.arange(1, n + 1, dtype=torch.uint8, device=positions.device)
    tiled = torch.where(tiled == 0, first, tiled) - 1
    per_byte = 8 // position_bits(m)
    fields = tiled.permute(0, 3, 2, 4, 1, 5, 6).reshape(row_tiles, group_tiles, 8, 2, -1, per_byte)
    return (fields << _shifts(m, positions.device)).sum(-1, dtype=torch.uint8)


def decode_positions(encoded: Tensor, n: int, m: int) -> Tensor:
    """Positions ``[padded rows, padded groups, n]``, int64, from what :func:`encode_positions` returns."""
    row_tiles, group_tiles = encoded.shape[:2]
    mask = (1 << position_bits(m)) - 1
    fields = (encoded[..., None] >> _shifts(m, encoded.device)) & mask
    tiled = fields.view(row_tiles, group_tiles, 8, 2, 2, 4, n).permute(0, 4, 2, 1, 3, 5, 6)
    return tiled.reshape(row_tiles * TILE_ROWS, group_tiles * TILE_GROUPS, n).to(torch.int64)


def verify(parts: Parts, grid: tuple[int, int], n: int, m: int, what: str) -> Tensor:
    """Refuse values and positions with which a kernel could read outside its tensors.

    Args:
        parts: values and positions.
        grid: numbers of row tiles and group tiles.
        n: values of a group.
        m: inputs of a group.
        what: what errors call the weight.

    Returns:
        The positions, as :func:`decode_positions` returns them.
    """
    values, positions = parts["values"], parts["positions"]
    wanted = (*grid, 32, 4 * n)
    require(values.shape == wanted, f"{what}.values: expected shape {list(wanted)}, got {list(values.shape)}")
    encoded = (*grid, 8, 2, n * position_bits(m))
    require(
        positions.dtype == torch.uint8 and positions.shape == encoded,
        f"{what}.positions: expected torch.uint8 of shape {list(encoded)}, "
        f"got {positions.dtype} {list(positions.shape)}",
    )
    decoded = decode_positions(positions, n, m)
    require(int(decoded.max()) < m, f"{what}.positions: expected numbers in [0, {m}), got {int(decoded.max())}")
    require(
        bool((decoded.diff(dim=2) > 0).all()), f"{what}.positions: expected ascending numbers within each group of {m}"
    )
    return decoded


def _tile(tensor: Tensor) -> Tensor:
    """``[rows, groups, n]`` as ``[row tiles, pair, g, group tiles, half, q, n]``, padded with zeros."""
    rows, groups, n = tensor.shape
    padded = F.pad(tensor, (0, 0, 0, -groups % TILE_GROUPS, 0, -rows % TILE_ROWS))
    return padded.view(-1, 2, 8, padded.shape[1] // TILE_GROUPS, 2, 4, n)


def _shifts(m: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, position_bits(m), dtype=torch.uint8, device=device)
