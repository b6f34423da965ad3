"""Packed weights with something changed, for the tests of what ``verify`` refuses."""

from __future__ import annotations

from torch import Tensor

from sparsekern.layouts import PackedWeight


def changed(packed: PackedWeight, **parts: Tensor) -> PackedWeight:
    return PackedWeight(packed.granularity, packed.shape, {**packed.parts, **parts})


def with_entry(tensor: Tensor, place: int, value: float) -> Tensor:
    flat = tensor.clone().flatten()
    flat[place] = value
    return flat.view(tensor.shape)
