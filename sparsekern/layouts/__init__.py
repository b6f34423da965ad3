"""The IR: one file a granularity. Imports torch and nothing else of this package."""

from .block import Block
from .channel import Channel
from .conv import Geometry, is_product, matrix_of, matrix_shape, weight_of
from .granularity import Granularity, Parts, parse, register, registered
from .join import join_outputs
from .nm import NM
from .packed import WEIGHT_DTYPES, PackedWeight, check_weight, dtype_name, pack
from .permute import permute_inputs
from .unstructured import Unstructured

__all__ = [
    "NM",
    "WEIGHT_DTYPES",
    "Block",
    "Channel",
    "Geometry",
    "Granularity",
    "PackedWeight",
    "Parts",
    "Unstructured",
    "check_weight",
    "dtype_name",
    "is_product",
    "join_outputs",
    "matrix_of",
    "matrix_shape",
    "pack",
    "parse",
    "permute_inputs",
    "register",
    "registered",
    "weight_of",
]
