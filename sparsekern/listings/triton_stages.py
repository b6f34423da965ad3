"""What Triton made of a kernel, stage by stage: its IR, that for GPUs, LLVM IR, PTX and machine code."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from . import nvidia
from .code import Code, Listing, UnreadableError

STAGES = ("ttir", "ttgir", "llir", "ptx")
"""The stages that are text, in order."""

# Places in the source and debug information: of no use to somebody who reads the code, and most of the text.
_NOISE = re.compile(r"^\s*(?:#loc|!|attributes #|\.loc|\.file|//|;|$|\$L__(?:tmp|func|info|debug))")
_PLACES = re.compile(r",? !dbg !\d+| loc\([^()]*(?:\([^()]*\))?[^()]*\)|\s+// .*$")
_DEBUG_SECTION = re.compile(r"^\s*\.section\s+\.debug")


class Compiled(Protocol):
    """As far as it is read here, what ``triton.compile`` returns."""

    asm: Mapping[str, str | bytes]
    metadata: Any


def kernel_code(kernel: str, compiled: Compiled) -> Code:
    """The stages of a compiled kernel.

    Args:
        kernel: its name in the kernel table.
        compiled: what ``triton.compile`` returned, for whatever target; no GPU is needed.
    """
    listings = stages(compiled.asm)
    notes = []
    cubin = compiled.asm.get("cubin")
    if isinstance(cubin, bytes):
        try:
            listings += machine_code(cubin)
        except UnreadableError as error:
            notes.append(f"no machine code: {error}")
    metadata = compiled.metadata
    notes.append(
        f"{metadata.num_warps} warps, {metadata.num_stages} stages, {metadata.shared} bytes of shared memory a block"
    )
    return Code(kernel, f"sm_{metadata.target.arch}", "Triton", tuple(listings), tuple(notes))


def stages(asm: Mapping[str, str | bytes]) -> list[Listing]:
    """The stages of ``STAGES`` that there are, without places in the source; PTX is counted."""
    listings = []
    for title in STAGES:
        text = asm.get(title)
        if isinstance(text, str):
            lines = _readable(text)
            mix = nvidia.ptx_mix(lines) if title == "ptx" else {}
            listings.append(Listing(title, lines, {"lines": len(text.splitlines())}, mix))
    return listings


def machine_code(cubin: bytes) -> list[Listing]:
    """Listings of the one kernel that a cubin holds.

    Raises:
        UnreadableError: cuobjdump is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        used = nvidia.resources(file)
        return [
            listing
            for name, instructions in nvidia.sass(file).items()
            for listing in nvidia.machine_code(name, instructions, used.get(name, {}))
        ]


def _readable(text: str) -> tuple[str, ...]:
    lines = []
    for line in text.splitlines():
        if _DEBUG_SECTION.match(line):
            break
        if not _NOISE.match(line):
            lines.append(_PLACES.sub("", line))
    return tuple(lines)
