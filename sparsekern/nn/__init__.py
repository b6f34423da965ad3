"""Modules and functions that take packed weights."""

from .config import Sparse
from .convert import densify_, sparsify_
from .functional import linear
from .sparse_linear import SparseLinear

__all__ = ["Sparse", "SparseLinear", "densify_", "linear", "sparsify_"]
