"""How the CPU kernels see weights: as blocks, or as n:m of single rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from .._native import failure, native
from ..layouts import NM, Block, Granularity, Unstructured
from ..layouts.compressed import MAX_COLUMNS_16_BIT

DTYPES = (torch.float32, torch.bfloat16)


def refused_weight(granularity: Granularity, shape: tuple[int, int], dtype: torch.dtype, device: str) -> str | None:
    """Why the kernels do not read a weight, as ``Backend.refusal`` says it."""
    if native is None:
        return f"native kernels are not installed ({failure})"
    if device != "cpu":
        return f"weight is on {device}"
    if dtype not in DTYPES:
        return f"no kernel for {dtype}"
    format_ = format_of(granularity)
    if format_ is None:
        return f"no kernel for {granularity.label}"
    if isinstance(format_, Block) and format_.grid(shape)[1] > MAX_COLUMNS_16_BIT:
        return f"more than {MAX_COLUMNS_16_BIT} block columns"
    return None


def is_nm(granularity: Granularity) -> TypeGuard[NM]:
    """Whether the tensors are those of n:m of single rows."""
    return isinstance(granularity, NM) and granularity.rows == 1


def blocks_of(granularity: Granularity, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors as those of a ``Block``."""
    if isinstance(granularity, Unstructured):
        values, columns, offsets = tensors
        return values.view(-1, 1, 1), columns, offsets
    return tensors


def format_of(granularity: Granularity) -> Block | NM | None:
    """How kernels see a granularity: its packed tensors are those of this one; None if they cannot read it."""
    if isinstance(granularity, Unstructured):
        return Block(1, 1)
    if isinstance(granularity, NM) and granularity.rows > 1:
        return Block(granularity.rows, 1)
    return granularity if isinstance(granularity, (Block, NM)) else None
