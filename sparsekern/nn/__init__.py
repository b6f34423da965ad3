"""Modules and functions that take packed weights."""

from .config import Sparse
from .convert import densify_, sparsify_
from .functional import linear
from .joined import JoinedLinear, join
from .sparse_linear import SparseLinear

__all__ = ["JoinedLinear", "Sparse", "SparseLinear", "densify_", "join", "linear", "sparsify_"]
