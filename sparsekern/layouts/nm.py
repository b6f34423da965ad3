"""n of every m consecutive inputs, chosen row by row or for several rows together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fragments
from .block import Block
from .compressed import decode_columns, row_of_entry
from .granularity import Granularity, Parts, register, require, require_matrix

ROWS = (1, 4, 8, 16, 32)
MOST_INPUTS = 32


@register
@dataclass(frozen=True)
class NM(Granularity):
    """Of every ``m`` consecutive inputs, ``n`` are kept; ``rows`` outputs share the choice.

    ``NM(2, 4)`` is the 2:4 pattern of sparse tensor cores. The inputs that are left over when ``m`` does not
    divide ``in`` form a smaller group, of which at most ``n`` are kept. The sparsity is implied, ``1 - n / m``.

    With ``rows > 1`` a kept input is a vector of ``rows`` weights, and the packed tensors are those of
    ``Block(rows, 1)``. With ``rows = 1`` they stand in the order of tensor-core fragments, padded with zeros to
    16 outputs and 8 groups (``layouts/fragments.py``, docs/formats.md):
        values: ``[ceil(N / 16), ceil(groups / 8), 32, 4 n]``, the weight's dtype.
        positions: ``[ceil(N / 16), ceil(groups / 8), 8, 2, n bits]`` uint8: the place of each value in its group,
            in 2, 4 or 8 bits, ascending within a group.
    There n places of each group are always stored: where a mask keeps fewer, others are filled up with zeros. They
    count in ``density``, and training may give them values.

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (2:4); Zhou et al., Learning N:M
    Fine-grained Structured Sparse Neural Networks From Scratch, ICLR 2021 (N:M).
    """

    n: int
    m: int
    rows: int = 1
    kind: ClassVar[str] = "nm"

    def __post_init__(self) -> None:
        integers = all(type(side) is int for side in (self.n, self.m, self.rows))
        if not (integers and 1 <= self.n < self.m <= MOST_INPUTS and self.rows in ROWS):
            raise ValueError(
                f"NM(n, m, rows) takes integers 1 <= n < m <= {MOST_INPUTS} and rows of "
                f"{', '.join(map(str, ROWS))}, got ({self.n!r}, {self.m!r}, {self.rows!r})"
            )

    @property
    def part_names(self) -> tuple[str, ...]:
        return self._vectors.part_names if self.rows > 1 else ("values", "positions")

    @property
    def label(self) -> str:
        return f"{self.n}:{self.m}" if self.rows == 1 else f"{self.n}:{self.m}x{self.rows}"

    @property
    def implied_sparsity(self) -> float:
        return 1 - self.n / self.m

    def check_shape(self, shape: tuple[int, int], what: str = "weight") -> None:
        require_matrix(shape, what)
        require(
            self.rows <= shape[0] and self.m <= shape[1],
            f"{what}: {self.label} chooses among {self.m} inputs for {self.rows} outputs, more than the weight "
            f"{list(shape)} has; choose a smaller pattern, or keep this layer dense",
        )

    def group_sums(self, scores: Tensor) -> Tensor:
        return self._vectors.group_sums(scores)

    def spread(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        return self._vectors.spread(groups, shape)

    def mask(self, scores: Tensor, sparsity: float | None) -> Tensor:
        """Keep the ``n`` inputs of each group with the highest scores, summed over the rows that share them.

        Raises:
            ValueError: a sparsity other than ``1 - n / m``.
        """
        require(
            sparsity is None or abs(float(sparsity) - self.implied_sparsity) < 1e-6,
            f"sparsity: {self.label} implies {self.implied_sparsity:.4g}, got {sparsity!r}; "
            "leave it out or take another n:m",
        )
        sums = self.group_sums(scores)
        groups = self._in_groups(sums, fill=float("-inf"))
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(self.n, 2).indices, True)
        return self.spread(kept.flatten(1)[:, : sums.shape[1]], (scores.shape[0], scores.shape[1]))

    def pack(self, weight: Tensor, mask: Tensor) -> Parts:
        kept = self._vectors.group_sums(mask.to(torch.uint8)) > 0
        self._check_rule(kept, "mask")
        if self.rows > 1:
            return self._vectors.pack(weight, mask)
        kept = self._in_groups(kept)
        # Where fewer are kept than n, the first of the others fill up, with zeros for values.
        order = kept.to(torch.uint8).sort(dim=2, descending=True, stable=True).indices
        positions = order[..., : self.n].sort(dim=2).values
        values = self._in_groups(torch.where(mask, weight, 0)).gather(2, positions)
        return {
            "values": fragments.order_values(values),
            "positions": fragments.encode_positions(positions, self.m),
        }

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        if self.rows > 1:
            return self._vectors.unpack(parts, shape)
        values = fragments.restore_values(parts["values"], self.n)
        positions = fragments.decode_positions(parts["positions"], self.n, self.m)
        groups = values.new_zeros(*values.shape[:2], self.m).scatter_(2, positions, values)
        return groups.flatten(1)[: shape[0], : shape[1]].contiguous()

    def gather(self, dense: Tensor, parts: Parts) -> Tensor:
        if self.rows > 1:
            return self._vectors.gather(dense, parts)
        positions = fragments.decode_positions(parts["positions"], self.n, self.m)
        groups = self._in_groups(dense)
        pad = (0, 0, 0, positions.shape[1] - groups.shape[1], 0, positions.shape[0] - groups.shape[0])
        return fragments.order_values(F.pad(groups, pad).gather(2, positions))

    def verify(self, parts: Parts, shape: tuple[int, int], what: str) -> None:
        self.check_shape(shape, what)
        if self.rows > 1:
            self._vectors.verify(parts, shape, what)
            # By the stored vectors alone: a file may claim any shape.
            columns = decode_columns(parts["columns"])
            rows = row_of_entry(parts["offsets"], len(columns))
            groups = rows * -(-shape[1] // self.m) + columns // self.m
            found, counts = groups.unique_consecutive(return_counts=True)
            crowded = (counts > self.n).nonzero()
            if crowded.numel():
                first = int(crowded[0])
                row, group = divmod(int(found[first]), -(-shape[1] // self.m))
                self._refuse(row, group, int(counts[first]), shape[1], f"{what}.columns")
            return
        tiles = fragments.tiles((shape[0], -(-shape[1] // self.m)))
        positions = fragments.verify(parts, tiles, self.n, self.m, what)
        values = fragments.restore_values(parts["values"], self.n)
        inputs = positions + torch.arange(values.shape[1], device=positions.device)[:, None] * self.m
        # One weight has one packed form, whoever reads it; and padding must never come to life in training.
        require(not values[shape[0] :].any(), f"{what}.values: non-zero padding below row {shape[0]}")
        require(not values[inputs >= shape[1]].any(), f"{what}.values: non-zero padding beyond column {shape[1]}")

    def stored(self, parts: Parts, shape: tuple[int, int]) -> int:
        if self.rows > 1:
            return self._vectors.stored(parts, shape)
        return shape[0] * (shape[1] // self.m * self.n + min(self.n, shape[1] % self.m))

    @property
    def _vectors(self) -> Block:
        """The blocks that the kept weights form: one input of the rows that share a choice."""
        return Block(self.rows, 1)

    def _in_groups(self, matrix: Tensor, fill: float = 0) -> Tensor:
        """View ``[rows, K]`` as ``[rows, groups, m]``, the last group filled up."""
        padded = F.pad(matrix, (0, -matrix.shape[1] % self.m), value=fill)
        return padded.view(matrix.shape[0], -1, self.m)

    def _check_rule(self, kept: Tensor, what: str) -> None:
        """Refuse more than n kept inputs in a group, ``kept`` being ``[N / rows, K]``."""
        counts = self._in_groups(kept).sum(2)
        if int(counts.max()) > self.n:
            row, group = (counts > self.n).nonzero()[0].tolist()
            self._refuse(row, group, int(counts[row, group]), kept.shape[1], what)

    def _refuse(self, row: int, group: int, count: int, in_features: int, what: str) -> NoReturn:
        first, last = group * self.m, min((group + 1) * self.m, in_features) - 1
        rows = f"row {row} keeps" if self.rows == 1 else f"the {self.rows} rows from {row * self.rows} on keep"
        raise ValueError(
            f"{what}: {self.label} keeps at most {self.n} of {self.m} consecutive inputs, but {rows} {count} of "
            f"inputs {first} to {last} (group {group}); make_mask gives a mask that fits"
        )
