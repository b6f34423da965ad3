"""Blocks of r output rows by c inputs, stored by block rows (a BCSR whose blocks are column-major)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .compressed import decode_columns, encode_columns, offsets_from_counts, row_of_entry, verify_rows
from .granularity import Granularity, Parts, register, require, require_matrix


@register
@dataclass(frozen=True)
class Block(Granularity):
    """Blocks of ``rows`` outputs x ``cols`` inputs are kept or dropped whole.

    ``Block(16, 1)`` is a column vector: 16 outputs share one input. Sides that are no multiple of
    the block are padded with zeros in the packed form, never in the layer's interface.

    Packed tensors:
        values: ``[blocks, cols, rows]``, the weight's dtype. Within a block the outputs lie next to
            each other, so a vector register holds one input's weights for several outputs.
        columns: block column of each block, ascending within a block row: ``[blocks, 2]`` uint8
            where 16 bits suffice, see ``layouts/compressed.py``, else ``[blocks]`` int32.
        offsets: ``[ceil(N / rows) + 1]`` int32, first block of each block row.
    """

    rows: int
    cols: int
    kind: ClassVar[str] = "block"
    part_names: ClassVar[tuple[str, ...]] = ("values", "columns", "offsets")

    def __post_init__(self) -> None:
        # Not isinstance: True is an int, but its text "True" is none that ``parse`` reads.
        if not (type(self.rows) is int and type(self.cols) is int and min(self.rows, self.cols) >= 1):
            raise ValueError(f"Block(rows, cols) takes two integers >= 1, got ({self.rows!r}, {self.cols!r})")

    @property
    def label(self) -> str:
        return f"{self.rows}x{self.cols}"

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Numbers of block rows and block columns that cover a matrix of ``shape``."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.cols)

    def check_shape(self, shape: tuple[int, int], what: str = "weight") -> None:
        require_matrix(shape, what)
        require(
            self.rows <= shape[0] and self.cols <= shape[1],
            f"{what}: a {self.label} block is larger than the weight {list(shape)}; "
            f"choose a block of at most {shape[0]}x{shape[1]}, or keep this layer dense",
        )

    def group_sums(self, scores: Tensor) -> Tensor:
        return self._blocks(scores).sum((2, 3))

    def spread(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        wide = groups.repeat_interleave(self.rows, 0)[: shape[0]]
        return wide.repeat_interleave(self.cols, 1)[:, : shape[1]]

    def pack(self, weight: Tensor, mask: Tensor) -> Parts:
        kept = self._blocks(mask).flatten(2).any(2)
        values = self._blocks(torch.where(mask, weight, 0))[kept]
        return {
            # Through one dimension, because sides of 1 may keep any stride, and DDP refuses odd ones.
            "values": values.flatten().view(values.shape),
            "columns": encode_columns(kept.nonzero()[:, 1], limit=kept.shape[1]),
            "offsets": offsets_from_counts(kept.sum(1)),
        }

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        values = parts["values"]
        block_rows, block_cols = self.grid(shape)
        blocks = values.new_zeros(block_rows, block_cols, self.cols, self.rows)
        blocks[row_of_entry(parts["offsets"], len(values)), decode_columns(parts["columns"])] = values
        dense = blocks.permute(0, 3, 1, 2).reshape(block_rows * self.rows, block_cols * self.cols)
        return dense[: shape[0], : shape[1]].contiguous()

    def gather(self, dense: Tensor, parts: Parts) -> Tensor:
        rows = row_of_entry(parts["offsets"], len(parts["values"]))
        return self._blocks(dense)[rows, decode_columns(parts["columns"])].contiguous()

    def verify(self, parts: Parts, shape: tuple[int, int], what: str) -> None:
        self.check_shape(shape, what)
        block_rows, block_cols = self.grid(shape)
        values = parts["values"]
        require(
            values.dim() == 3 and values.shape[1:] == (self.cols, self.rows),
            f"{what}.values: expected shape [blocks, {self.cols}, {self.rows}], got {list(values.shape)}",
        )
        verify_rows(parts, block_rows, block_cols, what)
        # Padding beyond the matrix must be zero, or the kernels would add it to real outputs.
        tail_rows, tail_cols = shape[0] % self.rows, shape[1] % self.cols
        if tail_rows:
            bottom = values[int(parts["offsets"][-2]) :, :, tail_rows:]
            require(not bottom.any(), f"{what}.values: non-zero padding below row {shape[0]}")
        if tail_cols:
            right = values[decode_columns(parts["columns"]) == block_cols - 1, tail_cols:]
            require(not right.any(), f"{what}.values: non-zero padding beyond column {shape[1]}")

    def stored(self, parts: Parts, shape: tuple[int, int]) -> int:
        block_rows, block_cols = self.grid(shape)
        heights = torch.full((block_rows,), self.rows)
        heights[-1] = shape[0] - (block_rows - 1) * self.rows
        columns = decode_columns(parts["columns"]).cpu()
        widths = torch.where(columns == block_cols - 1, shape[1] - (block_cols - 1) * self.cols, self.cols)
        entry_heights = heights[row_of_entry(parts["offsets"].cpu(), len(columns))]
        return int((widths * entry_heights).sum())

    def _blocks(self, matrix: Tensor) -> Tensor:
        """View ``[N, K]`` as ``[block rows, block columns, cols, rows]``, padded with zeros."""
        shape = (matrix.shape[0], matrix.shape[1])
        block_rows, block_cols = self.grid(shape)
        pad = (0, block_cols * self.cols - shape[1], 0, block_rows * self.rows - shape[0])
        padded = F.pad(matrix, pad) if any(pad) else matrix
        return padded.reshape(block_rows, self.rows, block_cols, self.cols).permute(0, 2, 3, 1)
