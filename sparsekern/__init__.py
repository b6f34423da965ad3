"""sparsekern: block-sparse kernels that make pruned PyTorch models faster."""

import sys as _sys

from ._native import apply_isa_limit as _apply_isa_limit

# "-m" stands there only while ``python -m sparsekern`` looks for its module. The command line then
# applies the limit itself: as one line and not as a traceback, and doctor among its other findings.
if _sys.argv[:1] != ["-m"]:
    _apply_isa_limit()

from . import (  # noqa: F401  (register themselves)
    backends as _backends,
    ops_channel as _ops_channel,
    ops_conv as _ops_conv,
    ops_grad as _ops_grad,
)
from .io import load_, save
from .layouts import NM, Block, Channel, PackedWeight, Unstructured, pack
from .nn import (
    JoinedLinear,
    Sparse,
    SparseConv2d,
    SparseLinear,
    conv2d,
    conv_from_linear,
    densify_,
    join,
    linear,
    sparsify_,
)
from .plan import KernelRecord, Target, kernels
from .prune import make_mask

__version__ = "0.1.0"

__all__ = [
    "NM",
    "Block",
    "Channel",
    "JoinedLinear",
    "KernelRecord",
    "PackedWeight",
    "Sparse",
    "SparseConv2d",
    "SparseLinear",
    "Target",
    "Unstructured",
    "conv2d",
    "conv_from_linear",
    "densify_",
    "join",
    "kernels",
    "linear",
    "load_",
    "make_mask",
    "pack",
    "save",
    "sparsify_",
]
