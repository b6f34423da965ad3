"""The back ends, most preferred first. Importing this package registers them."""

from ..plan.registry import register_backend
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .rows import RowsBackend
from .triton import TritonBackend

register_backend(RowsBackend())
register_backend(CpuBackend())
register_backend(CudaBackend())
register_backend(TritonBackend())
register_backend(ReferenceBackend())

__all__ = ["CpuBackend", "CudaBackend", "ReferenceBackend", "RowsBackend", "TritonBackend"]
