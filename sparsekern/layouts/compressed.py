"""Compressed rows: the index structure that the block and unstructured layouts share.

Column numbers below 65,536 are stored in 16 bits: a 4x1 block is 16 bytes, so 32-bit indices would
cost a quarter of the memory that pruning saves. They are kept as pairs of bytes, low byte first,
because neither gloo nor NCCL sends 16-bit integers and DDP sends every buffer. Wider matrices use
``int32``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .granularity import Parts, require

MAX_COLUMNS_16_BIT = 1 << 16


def encode_columns(columns: Tensor, limit: int) -> Tensor:
    """Store column numbers in ``[0, limit)`` as narrowly as their range allows.

    Args:
        columns: ``[entries]``, integers.
        limit: number of columns.

    Returns:
        ``[entries, 2]`` uint8 where 16 bits suffice, else ``[entries]`` int32.
    """
    if limit > MAX_COLUMNS_16_BIT:
        return columns.to(torch.int32)
    return columns.to(torch.int16).view(torch.uint8).view(-1, 2)


def decode_columns(columns: Tensor) -> Tensor:
    """Column numbers ``[entries]`` as int64, from what :func:`encode_columns` returns."""
    if columns.dtype != torch.uint8:
        return columns.to(torch.int64)
    return columns.flatten().view(torch.int16).to(torch.int64) & 0xFFFF


def offsets_from_counts(counts: Tensor) -> Tensor:
    """Prefix sums of the entries in each row, int32, one longer than ``counts``."""
    total = int(counts.sum())
    require(total < 2**31, f"weight: {total} stored groups exceed the 32-bit offsets; use larger blocks")
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)


def row_of_entry(offsets: Tensor, entries: int) -> Tensor:
    """Row number of each stored entry, int64."""
    rows = torch.arange(offsets.numel() - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff().to(torch.int64), output_size=entries)


def verify_rows(parts: Parts, rows: int, columns: int, what: str) -> None:
    """Refuse offsets and columns with which a kernel could read outside its tensors."""
    offsets, index, values = parts["offsets"], parts["columns"], parts["values"]
    entries = values.shape[0]
    require(
        offsets.dtype == torch.int32 and offsets.shape == (rows + 1,),
        f"{what}.offsets: expected int32 of shape [{rows + 1}], got {offsets.dtype} {list(offsets.shape)}",
    )
    narrow = columns <= MAX_COLUMNS_16_BIT
    expected, shape = (torch.uint8, (entries, 2)) if narrow else (torch.int32, (entries,))
    require(
        index.dtype == expected and index.shape == shape,
        f"{what}.columns: expected {expected} of shape {list(shape)} (one entry a stored group), "
        f"got {index.dtype} {list(index.shape)}",
    )
    counts = offsets.to(torch.int64).diff()
    require(
        int(offsets[0]) == 0 and int(offsets[-1]) == entries and bool((counts >= 0).all()),
        f"{what}.offsets: expected to rise from 0 to {entries} (the number of stored groups) without "
        f"falling, got {int(offsets[0])} to {int(offsets[-1])}, smallest step {int(counts.min())}",
    )
    wide = decode_columns(index)
    if entries:
        require(
            int(wide.min()) >= 0 and int(wide.max()) < columns,
            f"{what}.columns: expected numbers in [0, {columns}), got {int(wide.min())} to {int(wide.max())}",
        )
    owner = row_of_entry(offsets, entries)
    ascending = (wide.diff() > 0) | (owner.diff() > 0)
    require(bool(ascending.all()), f"{what}.columns: expected ascending numbers within each row, without repeats")
