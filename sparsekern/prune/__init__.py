"""The front end: from weights and calibration data to masks."""

from .criteria import CRITERIA
from .masks import check_sparsity, make_mask

__all__ = ["CRITERIA", "check_sparsity", "make_mask"]
