"""The disassemblers of other packages: where they are, and what they print."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from .code import UnreadableError

HOW_TO_INSTALL = {
    "objdump": "install binutils (Debian: apt-get install binutils)",
    "cuobjdump": "pip install triton, which brings it, or put that of the CUDA toolkit on the PATH",
}


def find(tool: str) -> str | None:
    """Path of a tool: on the PATH, of the CUDA toolkit, or in Triton's wheel; None if it is nowhere."""
    # Triton is not imported for it: that takes seconds, and would count GPUs.
    triton = importlib.util.find_spec("triton")
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(tool) or shutil.which(tool, path=os.pathsep.join(map(str, folders)))


def output_of(tool: str, *arguments: str | Path) -> str:
    """What a tool prints.

    Raises:
        UnreadableError: it is not installed, or failed.
    """
    path = find(tool)
    if path is None:
        raise UnreadableError(f"needs {tool}, which is not there: {HOW_TO_INSTALL[tool]}")
    ran = subprocess.run([path, *arguments], capture_output=True, text=True, errors="replace")
    if ran.returncode:
        said = (ran.stderr or ran.stdout).strip().splitlines() or ["nothing"]
        raise UnreadableError(f"{tool} failed with code {ran.returncode} and said: {said[-1]}")
    return ran.stdout
