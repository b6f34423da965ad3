"""The front end: from weights and calibration data to masks."""

from .calibrate import Calibration, InputStatistics
from .calibrated import calibrated_weights
from .criteria import CRITERIA
from .masks import check_sparsity, make_mask
from .reconstruct import dampen, group_scores, reconstruct

__all__ = [
    "CRITERIA",
    "Calibration",
    "InputStatistics",
    "calibrated_weights",
    "check_sparsity",
    "dampen",
    "group_scores",
    "make_mask",
    "reconstruct",
]
