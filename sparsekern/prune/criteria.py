"""Scores: how much each weight matters. A mask keeps the groups with the highest sums."""

from __future__ import annotations

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Squared magnitude of each weight, float32 or wider; a group's score is its squared norm."""
    wide = weight.detach().float() if weight.element_size() < 4 else weight.detach()
    return wide.square()


CRITERIA = {"magnitude": magnitude}
"""Criteria that need nothing but the weight, by name."""
