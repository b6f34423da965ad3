"""One packed weight out of several that multiply the same input."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .granularity import require
from .packed import PackedWeight, pack
from .permute import stored_places


def join_outputs(weights: Sequence[PackedWeight], names: Sequence[str]) -> PackedWeight:
    """Packed weights below one another: ``joined.to_dense()`` equals ``torch.cat`` of theirs, bit for bit.

    The same places are stored as before, no more: a place that is stored as zero stays so. A dense copy is made on the
    way, which serves every granularity.

    Args:
        weights: one or more, ``[out_i, in]``, of the same granularity, in, dtype and device.
        names: how errors call each.

    Returns:
        Packed ``[sum of out_i, in]``.

    Raises:
        ValueError: one differs from the first, or holds NaN or infinity; one ends in the middle of a group of outputs,
            of which the next one keeps other places.
    """
    first = weights[0]
    for weight, name in zip(weights, names, strict=True):
        for what, found, expected in (
            ("granularity", weight.granularity.spec, first.granularity.spec),
            ("in_features", weight.shape[1], first.shape[1]),
            ("dtype", weight.dtype, first.dtype),
            ("device", weight.device, first.device),
        ):
            require(found == expected, f"{name}: expected the {what} {expected} of {names[0]}, got {found}")
        require(weight.device.type != "meta", f"{name}: expected a weight with values, got it on the meta device")
        require(bool(weight.values.isfinite().all()), f"{name}: the packed values hold NaN or infinity")
    joined = _below_one_another(weights)
    if joined is None:
        uneven = next(i for i in range(1, len(weights)) if _below_one_another(weights[: i + 1]) is None) - 1
        raise ValueError(
            f"{names[uneven]}: its outputs end within a group of {first.granularity.label}, of which the next layer "
            "keeps other weights; put it last, or keep the two apart"
        )
    return joined


def _below_one_another(weights: Sequence[PackedWeight]) -> PackedWeight | None:
    """None where two weights would share a group of which they keep different places."""
    dense = torch.cat([weight.to_dense() for weight in weights])
    try:
        joined = pack(dense, weights[0].granularity, torch.cat([stored_places(weight) for weight in weights]))
    except ValueError:  # a pattern such as n:m may not hold the places of both; each alone was packed before
        return None
    return joined if _stored([joined]) == _stored(weights) else None


def _stored(weights: Sequence[PackedWeight]) -> int:
    return sum(weight.granularity.stored(weight.parts, weight.shape) for weight in weights)
