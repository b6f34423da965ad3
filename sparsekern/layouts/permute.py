"""A packed weight whose inputs come in another order: the kept places move, and nothing is pruned anew."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .block import Block
from .conv import weight_of
from .granularity import Granularity, require
from .nm import NM
from .packed import PackedWeight, pack
from .unstructured import Unstructured


def permute_inputs(
    weight: PackedWeight, order: Tensor, kernel: tuple[int, int] | None = None, what: str = "weight"
) -> PackedWeight:
    """The weight with ``to_matrix()`` equal to ``weight.to_matrix()[:, order]``, bit for bit.

    The same places are stored as before, no more and no fewer: a place that is stored as zero stays so. Groups of one
    input (single weights, ``Block(r, 1)``, whole outputs) always stay groups. Groups of several consecutive inputs do
    where their inputs stay neighbours. Where they are torn apart, the coarsest finer granularity that stores just these
    places takes over: a narrower block, for ``NM(n, m, rows)`` the block ``rows`` x 1, at last single weights.

    Args:
        weight: packed ``[out, in]``, or a convolution's.
        order: int64 ``[in]``, a permutation: column i of the result is column ``order[i]``.
        kernel: ``(kh, kw)`` that makes the result a convolution's weight, ``in`` being ``kh * kw`` times its inputs.
        what: how errors call the weight.

    Raises:
        ValueError: the weight is on the meta device or holds NaN or infinity.
    """
    require(weight.device.type != "meta", f"{what}: is on the meta device, without values; load the weight first")
    require(bool(weight.values.isfinite().all()), f"{what}: the packed values hold NaN or infinity")
    order = order.to(weight.device)
    if torch.equal(order, torch.arange(len(order), device=order.device)):
        parts = {name: tensor.detach().clone() for name, tensor in weight.parts.items()}
        return PackedWeight(weight.granularity, weight.shape, parts, kernel, weight.verified)
    dense = weight_of(weight.to_matrix()[:, order], kernel)
    places = weight_of(stored_places(weight)[:, order], kernel)
    stored = weight.granularity.stored(weight.parts, weight.shape)
    for granularity in _from_coarse_to_fine(weight.granularity):
        try:
            packed = pack(dense, granularity, places)
        except ValueError:  # a pattern such as n:m no longer holds these places
            continue
        if granularity.stored(packed.parts, packed.shape) == stored:
            return packed
    raise AssertionError("single weights store any places")


def stored_places(weight: PackedWeight) -> Tensor:
    """Bool of the weight's matrix, ``[out, in]``: True where it is stored, be it as zero."""
    names = weight.granularity.part_names
    ones = {**weight.parts, names[0]: torch.ones_like(weight.values)}
    return weight.granularity.unpack(ones, weight.shape) != 0


def _from_coarse_to_fine(granularity: Granularity) -> Iterator[Granularity]:
    """A granularity and those whose groups are parts of its groups."""
    yield granularity
    if isinstance(granularity, Block):
        yield from (Block(granularity.rows, c) for c in range(granularity.cols - 1, 0, -1) if granularity.cols % c == 0)
    elif isinstance(granularity, NM) and granularity.rows > 1:
        yield Block(granularity.rows, 1)
    yield Unstructured()
