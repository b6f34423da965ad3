"""The compiled module, or None with the reason why it is not there."""

from __future__ import annotations

import importlib
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

ENV_ISA = "SPARSEKERN_ISA"

native: Any = None
"""The compiled module ``sparsekern._C``, or None in a pure-Python installation."""

CUDA_LIBRARY = Path(__file__).with_name("_C_cuda.so")
"""The operators of CUDA, if they were built."""

failure: str | None = None
"""Why ``native`` is None."""

if not TYPE_CHECKING:
    import torch  # noqa: F401  (the compiled module links against torch's libraries)

    try:
        # Not "from . import _C", whose error would blame a circular import.
        native = importlib.import_module("._C", __package__)
    except ImportError as error:
        failure = str(error)


@cache
def load_cuda() -> str | None:
    """Load the CUDA library, which registers its operators; None, or why it is not there.

    Once in a process, and only when a CUDA tensor is met or somebody asks: it brings a CUDA runtime of its own.
    """
    if native is None:
        return f"native kernels are not installed ({failure})"
    if not CUDA_LIBRARY.exists():
        return "the CUDA library is not built (python -m sparsekern doctor says why)"
    import torch

    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"the CUDA library does not load ({error})"
    return None


def cuda_refusal() -> str | None:
    """What launches on the current CUDA device will fail with; None if nothing. The library is loaded."""
    import ctypes

    ask = ctypes.CDLL(str(CUDA_LIBRARY)).sparsekern_cuda_refusal
    ask.restype = ctypes.c_char_p
    told: bytes | None = ask()
    return None if told is None else told.decode()


def apply_isa_limit() -> None:
    """Lower the instruction set to what ``SPARSEKERN_ISA`` names.

    Raises:
        RuntimeError: the variable names a level that does not exist or that this CPU lacks, or there is no
            compiled module.
    """
    wanted = os.environ.get(ENV_ISA)
    if not wanted:
        return
    if native is None:
        raise RuntimeError(
            f"{ENV_ISA}={wanted}: expected compiled kernels to choose from, but there are none ({failure}); "
            "python -m sparsekern doctor says how to build them; unset the variable to do without"
        )
    supported = native.isa_supported()
    if wanted not in supported:
        raise RuntimeError(
            f"{ENV_ISA}={wanted}: expected one of {', '.join(supported)}, which is what this CPU and its "
            f"operating system support; unset the variable to use {supported[-1]}"
        )
    native.set_isa(wanted)
