"""Code for NVIDIA GPUs: PTX and machine code, out of a library or a cubin. No GPU and no driver is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from .code import Code, Instruction, Listing, UnreadableError, as_lines, count, innermost_loops, short
from .tools import output_of

SASS_KINDS = (
    *("HMMA.SP", "HMMA", "HGMMA.SP", "HGMMA", "IMMA.SP", "IMMA", "DMMA", "UTCHMMA", "FFMA", "HFMA2"),
    *("UTMALDG", "UTMASTG", "LDGSTS", "LDSM", "LDG", "STG", "LDS", "STS", "LDL", "STL", "SHFL", "BAR", "BRA", "other"),
)
"""Machine instructions by name: tensor cores, multiply-adds, memory from far to near, barriers."""

_WORK = (tuple(kind for kind in SASS_KINDS if "MMA" in kind), ("FFMA", "HFMA2"), ("LDG", "LDS"))
"""What a main loop is told by, the first kind that a kernel has in a loop."""

PTX_KINDS = (
    *("wgmma.mma_async.sp", "wgmma.mma_async", "tcgen05.mma", "wmma.mma", "mma.sp", "mma.sync", "fma"),
    *("cp.async.bulk", "cp.async", "ldmatrix", "ld.global", "st.global", "ld.shared", "st.shared", "ld.local"),
    *("st.local", "bar.sync", "mbarrier", "bra", "other"),
)
"""The same of PTX."""

_TENSOR = re.compile(r"^(?:H|HG|I|D|UTCH)MMA")
_SASS_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_JUMP = re.compile(r"\bBRA\S*\s+(?:!?~?U?[PR][TZ\d]+,\s*)*`?\(?0x([0-9a-f]+)")
_GOES_NO_FURTHER = re.compile(r"^(?:BRA(?:\.U)?\s+`?\(?0x|EXIT\b|RET\b|BRX\b|JMP\b)")
_PREDICATE = re.compile(r"^@!?U?P[T\d]+\s+")
_RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_PTX_INSTRUCTION = re.compile(r"^(?:@!?%\w+\s+)?([a-z][\w.:]*)[\s;]")
_PTX_ENTRY = re.compile(r"\.entry\s+(\w+)")


def targets(file: Path) -> list[str]:
    """The architectures that a library holds machine code for, such as ``sm_90``."""
    listed = re.findall(r"\.(sm_\d+[af]?)\.cubin", output_of("cuobjdump", "-lelf", file))
    return list(dict.fromkeys(listed))


def sass(file: Path, target: str | None = None) -> dict[str, list[Instruction]]:
    """The machine code of each kernel in a library or a cubin, by mangled name.

    Args:
        file: the library or cubin.
        target: architecture; None for a cubin, which has one.

    Raises:
        UnreadableError: cuobjdump is missing or fails.
    """
    found: dict[str, list[Instruction]] = {}
    for part in output_of("cuobjdump", "-sass", *_only(target), file).split("\t\tFunction : ")[1:]:
        name, _, text = part.partition("\n")
        lines = [line for line in map(_SASS_LINE.match, text.splitlines()) if line]
        found[name.strip()] = _without_end([_parse(line[1], line[2]) for line in lines])
    return found


def resources(file: Path, target: str | None = None) -> dict[str, dict[str, int]]:
    """What each kernel takes: registers of a thread, bytes of static shared memory, bytes spilled.

    Args:
        file: the library or cubin.
        target: architecture; None for a cubin.

    Raises:
        UnreadableError: cuobjdump is missing or fails.
    """
    printed = output_of("cuobjdump", "-res-usage", *_only(target), file)
    return {
        name: {"registers": int(registers), "static shared bytes": int(shared), "stack bytes": int(stack) + int(local)}
        for name, registers, stack, shared, local in _RESOURCES.findall(printed)
    }


def ptx(file: Path) -> dict[str, list[str]]:
    """The PTX of each kernel that a library holds, by mangled name; that of one architecture, the last."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"(?=^\.(?:visible|weak)\b.*\.entry)", output_of("cuobjdump", "-ptx", file), flags=re.M)[1:]:
        entry = _PTX_ENTRY.search(part)
        if entry:
            found[entry[1]] = [line for line in part.split("\n}")[0].splitlines() if line.strip()] + ["}"]
    return found


def sass_kind(text: str) -> str:
    """Which of ``SASS_KINDS`` an instruction is."""
    opcode = _PREDICATE.sub("", text).split(" ", 1)[0]
    base = opcode.split(".")[0]
    if _TENSOR.match(base) and ".SP" in opcode:
        base = f"{base}.SP"
    return base if base in SASS_KINDS else "other"


def ptx_mix(lines: Sequence[str]) -> dict[str, int]:
    """How many PTX instructions there are of each of ``PTX_KINDS``."""
    found = [match[1] for match in map(_PTX_INSTRUCTION.match, (line.strip() for line in lines)) if match]
    return count(map(_ptx_kind, found), PTX_KINDS)


def main_loop(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The innermost loop with the most tensor-core instructions; of a kernel without, multiply-adds; else loads.

    Code that the compiler lays behind the kernel, such as for warps that have parted, jumps back into the middle of
    loops: that makes no loop.

    Returns:
        Its instructions; none if the kernel has no such loop.
    """
    instructions = _without_returns(instructions)
    for work in _WORK:
        does = partial(_is_one_of, work)
        if loops := innermost_loops(instructions, does):
            return max(loops, key=lambda loop: (sum(does(one.text) for one in loop), -len(loop)))
    return []


def machine_code(name: str, instructions: Sequence[Instruction], used: Mapping[str, int]) -> list[Listing]:
    """Listings of a kernel: all of it counted, and its main loop.

    Args:
        name: as :func:`sass` has it.
        instructions: of the whole kernel.
        used: its resources.
    """
    whole = Listing(
        "machine code",
        as_lines(instructions),
        {"function": short(demangled(name)), "instructions": len(instructions), **used},
        count((sass_kind(one.text) for one in instructions), SASS_KINDS),
    )
    loop = main_loop(instructions)
    if not loop:
        return [whole]
    facts = {"instructions": len(loop)}
    return [
        whole,
        Listing("main loop", as_lines(loop), facts, count((sass_kind(one.text) for one in loop), SASS_KINDS)),
    ]


def kernel_code(kernel: str, library: Path, pattern: str, target: str) -> Code:
    """A kernel of a compiled library: its PTX if that is there, its machine code and its main loop.

    Args:
        kernel: name in the kernel table.
        library: the file.
        pattern: regular expression that is found in the kernel's demangled name, and in no other.
        target: architecture, such as ``sm_90``.

    Raises:
        UnreadableError: a tool is missing, the library has no code for the architecture or no such kernel.
    """
    built = targets(library)
    if target not in built:
        raise UnreadableError(f"{library.name}: expected code for {target}, found {', '.join(built) or 'none'}")
    found = sass(library, target)
    matching = [name for name in found if re.search(pattern, demangled(name))]
    if len(matching) != 1:
        names = ", ".join(map(demangled, matching or found))
        raise UnreadableError(f"{library.name}: expected one kernel {pattern!r} for {target}, found {names or 'none'}")
    (name,) = matching
    listings = machine_code(name, found[name], resources(library, target).get(name, {}))
    if lines := ptx(library).get(name):
        listings.insert(0, Listing("ptx", tuple(lines), {"lines": len(lines)}, ptx_mix(lines)))
    return Code(kernel, target, library.name, tuple(listings))


def demangled(name: str) -> str:
    """The name as it stands in C++; as it is, where c++filt is missing."""
    if not name.startswith("_Z") or shutil.which("c++filt") is None:
        return name
    return subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()


def _is_one_of(kinds: Sequence[str], text: str) -> bool:
    return sass_kind(text) in kinds


def _only(target: str | None) -> list[str]:
    return [] if target is None else ["-arch", target]


def _without_end(instructions: list[Instruction]) -> list[Instruction]:
    """Without what stands behind a kernel: a jump to itself, and nothing up to the next multiple of 128 bytes."""
    while instructions and (instructions[-1].text == "NOP" or instructions[-1].target == instructions[-1].address):
        instructions = instructions[:-1]
    return instructions


def _without_returns(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Jumps backwards lead nowhere unless to the head of a loop: what all ways to the jump come through."""
    place = {instruction.address: index for index, instruction in enumerate(instructions)}
    targets = [place.get(one.target) if one.target is not None else None for one in instructions]
    ends = [_GOES_NO_FURTHER.match(one.text) is not None for one in instructions]

    def reaches(index: int, without: int) -> bool:
        seen = {without}
        ways = [0]
        while ways:
            at = ways.pop()
            if at in seen or at >= len(instructions):
                continue
            if at == index:
                return True
            seen.add(at)
            target = targets[at]
            ways += ([] if target is None else [target]) + ([] if ends[at] else [at + 1])
        return False

    kept = list(instructions)
    for index, target in enumerate(targets):
        if target is not None and target <= index and index != target and reaches(index, without=target):
            kept[index] = replace(instructions[index], target=None)
    return kept


def _parse(address: str, text: str) -> Instruction:
    text = re.sub(r"\s+", " ", text)
    jump = _JUMP.search(text)
    return Instruction(int(address, 16), text, int(jump[1], 16) if jump else None)


def _ptx_kind(opcode: str) -> str:
    for kind in PTX_KINDS[:-1]:
        parts = kind.removesuffix(".sp").split(".")
        words = re.split(r"[.:]+", opcode)
        if words[: len(parts)] == parts and (not kind.endswith(".sp") or "sp" in words):
            return kind
    return "other"
