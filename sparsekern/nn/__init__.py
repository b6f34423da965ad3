"""Modules and functions that take packed weights."""

from .config import Sparse
from .conv_from_linear import conv_from_linear
from .convert import densify_, sparsify_
from .functional import linear
from .functional_conv import conv2d
from .joined import JoinedLinear, join
from .sparse_conv import SparseConv2d
from .sparse_linear import SparseLinear

__all__ = [
    "JoinedLinear",
    "Sparse",
    "SparseConv2d",
    "SparseLinear",
    "conv2d",
    "conv_from_linear",
    "densify_",
    "join",
    "linear",
    "sparsify_",
]
