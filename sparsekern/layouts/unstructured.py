"""Single weights, stored as compressed sparse rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .compressed import decode_columns, encode_columns, offsets_from_counts, row_of_entry, verify_rows
from .granularity import Granularity, Parts, register, require, require_matrix


@register
@dataclass(frozen=True)
class Unstructured(Granularity):
    """Every weight is kept or dropped on its own ("fine-grained" in the literature).

    Packed tensors:
        values: ``[kept]``, the weight's dtype, row by row.
        columns: input of each value, ascending within a row: ``[kept, 2]`` uint8 where 16 bits
            suffice, see ``layouts/compressed.py``, else ``[kept]`` int32.
        offsets: ``[N + 1]`` int32, first value of each row.
    """

    kind: ClassVar[str] = "unstructured"
    part_names: ClassVar[tuple[str, ...]] = ("values", "columns", "offsets")

    @property
    def label(self) -> str:
        return "unstructured"

    def check_shape(self, shape: tuple[int, int], what: str = "weight") -> None:
        require_matrix(shape, what)

    def group_sums(self, scores: Tensor) -> Tensor:
        return scores

    def spread(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        return groups

    def pack(self, weight: Tensor, mask: Tensor) -> Parts:
        return {
            "values": weight[mask].contiguous(),
            "columns": encode_columns(mask.nonzero()[:, 1], limit=mask.shape[1]),
            "offsets": offsets_from_counts(mask.sum(1)),
        }

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        dense = parts["values"].new_zeros(shape)
        dense[row_of_entry(parts["offsets"], len(parts["values"])), decode_columns(parts["columns"])] = parts["values"]
        return dense

    def gather(self, dense: Tensor, parts: Parts) -> Tensor:
        return dense[row_of_entry(parts["offsets"], len(parts["values"])), decode_columns(parts["columns"])]

    def verify(self, parts: Parts, shape: tuple[int, int], what: str) -> None:
        self.check_shape(shape, what)
        require(parts["values"].dim() == 1, f"{what}.values: expected one dimension, got {list(parts['values'].shape)}")
        verify_rows(parts, shape[0], shape[1], what)

    def stored(self, parts: Parts, shape: tuple[int, int]) -> int:
        return parts["values"].numel()
