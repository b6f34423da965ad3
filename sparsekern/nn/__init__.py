"""Modules and functions that take packed weights."""

from .functional import linear
from .sparse_linear import SparseLinear

__all__ = ["SparseLinear", "linear"]
