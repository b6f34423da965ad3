"""Triton kernels for NVIDIA GPUs. Importing this imports no Triton."""

from .backend import TritonBackend

__all__ = ["TritonBackend"]
