"""From a weight to a mask."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from ..layouts import Granularity, check_weight, matrix_of, matrix_shape, weight_of
from .criteria import CRITERIA


def make_mask(
    weight: Tensor, granularity: Granularity, sparsity: float | None = None, criterion: str = "magnitude"
) -> Tensor:
    """Choose which weights to keep.

    Args:
        weight: ``[out, in]``, or ``[out, in, kh, kw]`` of a convolution, as :func:`sparsekern.pack` takes it; finite.
        granularity: groups that are kept or dropped together.
        sparsity: share of the groups to drop, in [0, 1). Granularities that imply one take None.
        criterion: how a weight is scored; ``"magnitude"`` ranks groups by their squared norm.

    Returns:
        Bool tensor of the weight's shape, True = kept. At least one group is kept.

    Raises:
        TypeError: what :func:`sparsekern.pack` refuses by type.
        ValueError: sparsity outside [0, 1), an unknown criterion, a weight that the granularity
            cannot hold or that has NaN or infinity.
    """
    check_weight(weight, granularity)
    check_sparsity(sparsity)
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
    mask = granularity.mask(CRITERIA[criterion](matrix_of(weight)), sparsity)
    return weight_of(mask, matrix_shape(weight.shape)[1])


def check_sparsity(sparsity: object, what: str = "sparsity") -> None:
    """Refuse a share outside [0, 1); None is left to the granularity."""
    if sparsity is not None and not (isinstance(sparsity, Real) and 0 <= float(sparsity) < 1):
        raise ValueError(f"{what}: expected a share of zeros in [0, 1), got {sparsity!r}")
