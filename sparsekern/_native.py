"""The compiled module, or None with the reason why it is not there."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

ENV_ISA = "SPARSEKERN_ISA"

native: Any = None
"""The compiled module ``sparsekern._C``, or None in a pure-Python installation."""

failure: str | None = None
"""Why ``native`` is None."""

if not TYPE_CHECKING:
    import torch  # noqa: F401  (the compiled module links against torch's libraries)

    try:
        # Not "from . import _C", whose error would blame a circular import.
        native = importlib.import_module("._C", __package__)
    except ImportError as error:
        failure = str(error)


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
