"""The layer that is inspected: out of a file, or drawn at random for a shape."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ..io.layer import read_layer
from ..layouts import Granularity, PackedWeight, pack
from ..prune import make_mask

DENSITY = 0.25
"""Share of the weights kept where neither the user nor the granularity says."""


@dataclass(frozen=True)
class Subject:
    """A layer with everything that the stages start from.

    Attributes:
        name: what the user calls it.
        origin: where its weights come from, in words.
        weight: ``[out, in]``, as the first stage sees it: before pruning where that is known. Of a convolution, the
            matrix that its weight is to kernels.
        mask: True = kept.
        packed: the pruned weight.
    """

    name: str
    origin: str
    weight: Tensor
    mask: Tensor
    packed: PackedWeight


def from_file(path: str | os.PathLike[str], layer: str | None) -> Subject:
    """A sparse layer of a file; see :func:`sparsekern.io.layer.read_layer` for what is raised."""
    stored = read_layer(path, layer)
    packed = stored.packed
    origin = f"{os.fspath(path)}: what was pruned away is not in it"
    return Subject(stored.name or "the model", origin, packed.to_matrix(), stored_places(packed), packed)


def at_random(
    shape: tuple[int, int], granularity: Granularity, density: float | None, dtype: torch.dtype, seed: int
) -> Subject:
    """A weight of normal numbers, pruned by magnitude.

    Args:
        shape: ``(out, in)``.
        granularity: groups that are kept or dropped together.
        density: share of the groups kept; None for what the granularity implies, or ``DENSITY``.
        dtype: of the weight.
        seed: of the numbers.

    Raises:
        ValueError: the granularity does not fit the shape, or implies another density.
    """
    granularity.check_shape(shape)
    implied = None if granularity.implied_sparsity is None else 1 - granularity.implied_sparsity
    if density is not None and implied is not None and density != implied:
        raise ValueError(f"density: {granularity.label} keeps {implied:.4g}, got {density}; leave it out")
    if density is None and implied is None:
        density = DENSITY
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[1] ** -0.5
    weight = drawn.to(dtype)
    mask = make_mask(weight, granularity, None if density is None else 1 - density)
    name = f"{shape[1]}x{shape[0]}"
    origin = f"random normal numbers (seed {seed}), pruned by magnitude: real weights are less even"
    return Subject(name, origin, weight, mask, pack(weight, granularity, mask))


def stored_places(packed: PackedWeight) -> Tensor:
    """Which places of the matrix the packed weight stores, zeros among them included."""
    parts = {name: tensor.clone() for name, tensor in packed.parts.items()}
    parts[packed.granularity.part_names[0]].fill_(1)
    return packed.granularity.unpack(parts, packed.shape) != 0
