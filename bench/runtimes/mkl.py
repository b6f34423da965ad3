"""MKL's sparse matrices, called as its documentation asks: created once, hinted, optimised, then multiplied.

PyTorch calls the same functions without hint and optimisation, and creates the handle in every call. The
library is that of the package ``mkl``. PyTorch exports the functions of the MKL inside it under the same
names, so this one runs in a process of its own, with the OpenMP runtime that it prefers.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from .base import Array, Call, Library, Prepared, Problem, aligned, aligned_copy, fastest, need_square_blocks

NON_TRANSPOSE = 10
ROW_MAJOR, COLUMN_MAJOR = 101, 102
GENERAL = 20
CALLS_TO_COME = 1000


class _Descriptor(ctypes.Structure):
    """``struct matrix_descr``."""

    _fields_: ClassVar = [("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int)]


@functools.cache
def library() -> ctypes.CDLL:
    """``libmkl_rt`` of the installed package.

    Raises:
        ImportError: the package is not installed.
        OSError: it holds no such library, or that cannot be loaded.
    """
    for file in importlib.metadata.files("mkl") or ():
        if file.name.startswith("libmkl_rt.so"):
            return ctypes.CDLL(str(file.locate()))
    raise OSError("the package mkl holds no libmkl_rt.so")


class _Mkl(Library):
    kind = "sparse"
    module = package = "mkl"
    own_process = True

    def load(self) -> None:
        import scipy.sparse  # noqa: F401

        library()

    @abstractmethod
    def create(self, problem: Problem, base: int, handle: ctypes.c_void_p) -> list[Any]:
        """Fill a handle, with indices from ``base``; returns the arrays that must outlive it."""

    def prepare(self, problem: Problem) -> Prepared:
        library().MKL_Set_Num_Threads(problem.threads)
        layouts = (("row-major", ROW_MAJOR), ("column-major", COLUMN_MAJOR))
        return fastest(
            {
                f"{name}, indices from {base}": self.way(problem, base, layout)
                for base in (0, 1)
                for name, layout in layouts
            }
        )

    def way(self, problem: Problem, base: int, layout: int) -> Call:
        """One way of W times the transposed activations: those copied so (row-major), or read as they lie."""
        mkl, x = library(), problem.x
        tokens, (out_features, in_features) = len(x), problem.weight.shape
        handle, descriptor = ctypes.c_void_p(), _Descriptor(GENERAL, 0, 0)
        kept = self.create(problem, base, handle)
        _check("mkl_sparse_set_mm_hint", handle, NON_TRANSPOSE, descriptor, layout, tokens, CALLS_TO_COME)
        _check("mkl_sparse_optimize", handle)
        one, zero = ctypes.c_float(1), ctypes.c_float(0)

        def multiply(activations: Array, stride: int, output: Array, out_stride: int) -> None:
            status = mkl.mkl_sparse_s_mm(
                NON_TRANSPOSE, one, handle, descriptor, layout,
                _pointer(activations), tokens, stride, zero, _pointer(output), out_stride,
            )  # fmt: skip
            if status or not kept:
                raise RuntimeError(f"mkl_sparse_s_mm: status {status}")

        # Made once, as C programs do: new pages cost as much as a fast multiplication.
        turned, output = aligned((in_features, tokens)), aligned((tokens * out_features,))

        def row_major() -> Array:
            np.copyto(turned, x.T)
            multiply(turned, tokens, output, tokens)
            return output.reshape(out_features, tokens).T

        def column_major() -> Array:
            multiply(x, in_features, output, out_features)
            return output.reshape(tokens, out_features)

        return row_major if layout == ROW_MAJOR else column_major


class Bsr(_Mkl):
    """Square blocks; from zero they lie by rows, from one by columns, the only two that MKL multiplies by."""

    name = "mkl_bsr"

    def refusal(self, problem: Problem) -> str | None:
        return need_square_blocks(problem)

    def create(self, problem: Problem, base: int, handle: ctypes.c_void_p) -> list[Any]:
        import scipy.sparse

        side = problem.block[0]
        weight = scipy.sparse.bsr_array(problem.weight, blocksize=problem.block)
        values = aligned_copy(weight.data if base == 0 else weight.data.transpose(0, 2, 1))
        starts, columns = (weight.indptr + base).astype(np.int32), (weight.indices + base).astype(np.int32)
        rows, cols = (size // side for size in problem.weight.shape)
        _check(
            "mkl_sparse_s_create_bsr", ctypes.byref(handle), base, ROW_MAJOR if base == 0 else COLUMN_MAJOR,
            rows, cols, side, _pointer(starts), _pointer(starts[1:]), _pointer(columns), _pointer(values),
        )  # fmt: skip
        return [values, starts, columns]


class Csr(_Mkl):
    """Single weights."""

    name = "mkl_csr"

    def create(self, problem: Problem, base: int, handle: ctypes.c_void_p) -> list[Any]:
        import scipy.sparse

        weight = scipy.sparse.csr_array(problem.weight)
        starts, columns = (weight.indptr + base).astype(np.int32), (weight.indices + base).astype(np.int32)
        values = aligned_copy(weight.data)
        _check(
            "mkl_sparse_s_create_csr", ctypes.byref(handle), base, *problem.weight.shape,
            _pointer(starts), _pointer(starts[1:]), _pointer(columns), _pointer(values),
        )  # fmt: skip
        return [values, starts, columns]


def _check(function: str, *arguments: Any) -> None:
    """Call what returns a status.

    Raises:
        RuntimeError: it did not succeed.
    """
    if status := getattr(library(), function)(*arguments):
        raise RuntimeError(f"{function}: status {status}")


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
