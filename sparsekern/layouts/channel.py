"""Whole output channels: the packed form is a smaller dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .granularity import Granularity, Parts, register, require, require_matrix


@register
@dataclass(frozen=True)
class Channel(Granularity):
    """Whole output rows are kept or dropped ("filter" pruning); dropped outputs are the bias alone.

    Packed tensors:
        values: ``[kept, K]``, the weight's dtype, the kept rows.
        channels: ``[kept]`` int32, ascending row numbers.
    """

    kind: ClassVar[str] = "channel"
    part_names: ClassVar[tuple[str, ...]] = ("values", "channels")

    @property
    def label(self) -> str:
        return "channel"

    def check_shape(self, shape: tuple[int, int], what: str = "weight") -> None:
        require_matrix(shape, what)

    def group_sums(self, scores: Tensor) -> Tensor:
        return scores.sum(1)

    def spread(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        return groups[:, None].expand(shape).contiguous()

    def pack(self, weight: Tensor, mask: Tensor) -> Parts:
        channels = mask.any(1).nonzero()[:, 0]
        kept = torch.where(mask[channels], weight[channels], 0)
        return {"values": kept.contiguous(), "channels": channels.to(torch.int32)}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        dense = parts["values"].new_zeros(shape)
        dense[parts["channels"].to(torch.int64)] = parts["values"]
        return dense

    def gather(self, dense: Tensor, parts: Parts) -> Tensor:
        return dense[parts["channels"].to(torch.int64)]

    def verify(self, parts: Parts, shape: tuple[int, int], what: str) -> None:
        self.check_shape(shape, what)
        values, channels = parts["values"], parts["channels"]
        require(
            values.dim() == 2 and values.shape[1] == shape[1],
            f"{what}.values: expected shape [kept, {shape[1]}], got {list(values.shape)}",
        )
        require(
            channels.dtype == torch.int32 and channels.shape == (values.shape[0],),
            f"{what}.channels: expected int32 of shape [{values.shape[0]}], "
            f"got {channels.dtype} {list(channels.shape)}",
        )
        if channels.numel():
            require(
                int(channels.min()) >= 0 and int(channels.max()) < shape[0],
                f"{what}.channels: expected numbers in [0, {shape[0]}), "
                f"got {int(channels.min())} to {int(channels.max())}",
            )
        require(bool((channels.diff() > 0).all()), f"{what}.channels: expected ascending numbers without repeats")

    def stored(self, parts: Parts, shape: tuple[int, int]) -> int:
        return parts["values"].numel()
