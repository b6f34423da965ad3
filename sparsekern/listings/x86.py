"""x86-64 machine code: the main loop of a kernel in the compiled library, and its instruction mix.

Which loop is the main one is told from what it does, not from what it is called. A kernel's entry point calls many
forms of its loop (for tails, patterns, kinds of output) and polynomials for activations, all full of multiply-adds. A
product holds its sums in registers: an *accumulator* is one that the loop changes by adding products to it, and in no
other way. The main loop has the most of them: it is the largest tile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .code import Code, Instruction, Listing, UnreadableError, as_lines, count, innermost_loops, short
from .tools import output_of

KINDS = ("multiply-adds", "loads", "stores", "shuffles", "other vector", "prefetches", "scalar", "branches")
"""Each instruction is of one of them. Where a multiply-add reads memory itself, it is no load of its own."""

_PREFIXES = re.compile(r"^(?:(?:data16|cs|ds|es|bnd|notrack|lock|rep\w*|addr32|\{\w+\})\s+)*")
_FUNCTION = re.compile(r"^([0-9a-f]+) <(.*)>:$")
_LINE = re.compile(r"^ *([0-9a-f]+):\t(.*)$")
_BRANCH = re.compile(r"^(?:j\w+|call\w*|ret\w*|loop\w*|ud2)\b")
_DIRECT = re.compile(r"^(?:j\w+|call\w*|loop\w*)\s+(?:0x)?([0-9a-f]+)\b")
# Fused, of pairs and of tiles; and the multiplication of code without any of them, which is never encoded by VEX.
_MULTIPLY_ADD = re.compile(r"^(?:vfn?m(?:add|sub)\w*p[sdh]|vdpbf16ps|vdpphps|vpdp\w+|tdp\w+|mulp[sd])\b")
# Those that add to one operand: to the last one, unless the order of a fused one says otherwise.
_ADDS = re.compile(r"^(?:vfn?madd(?P<order>132|213|231)p[sdh]|vdpbf16ps|vdpphps|vpdp\w+|tdp\w+|addp[sd])\b")
_ADDEND = {"213": -3, "132": -2}
_MOVES = re.compile(
    r"^(?:v?p?mov\w*|v?lddqu|v?p?(?:broadcast|gather|scatter|maskmov|expand|compress)\w*|tileload\w*|tilestored)\b"
)
_SHUFFLE = re.compile(
    r"^v?p?(?:perm|shuf|unpck|blend|insert|extract|align|broadcast|mov[sd]l?h?dup|movhl|movlh|compress|expand)\w*"
)
_COPY = re.compile(r"^v?mov(?:[au]p[sd]|dq[au]\d*)\b")
_VECTOR = re.compile(r"%[xyzt]mm\d+")
_STACK_SLOT = re.compile(r"^-?\w*\(%r[sb]p\)$")


@dataclass(frozen=True)
class Function:
    """A function of the library.

    Attributes:
        name: demangled.
        text: its part of the listing.
    """

    name: str
    text: str

    def instructions(self) -> list[Instruction]:
        """By ascending address."""
        return [parse(found[1], found[2]) for found in map(_LINE.match, self.text.splitlines()) if found]


@dataclass(frozen=True)
class Loop:
    """An innermost loop and the function that it is in."""

    function: Function
    body: tuple[Instruction, ...]


def parse(address: str, text: str) -> Instruction:
    """An instruction from two columns of objdump's."""
    text = re.sub(r"\s+", " ", text.partition("#")[0]).strip()
    jump = _DIRECT.match(_PREFIXES.sub("", text))
    if jump is None:
        return Instruction(int(address, 16), text)
    return Instruction(int(address, 16), text.partition(" <")[0], int(jump[1], 16))


@cache
def functions(library: Path) -> dict[int, Function]:
    """The functions of a library by address: several may have one name.

    Raises:
        UnreadableError: objdump is missing or fails.
    """
    found = {}
    for part in output_of("objdump", "-d", "-C", "-w", "--no-show-raw-insn", library).split("\n\n"):
        header = _FUNCTION.match(part.strip().split("\n", 1)[0])
        if header:
            found[int(header[1], 16)] = Function(header[2], part)
    return found


def disassemble(library: Path, symbol: str) -> list[Instruction]:
    """The instructions of one function.

    Raises:
        UnreadableError: there is none of that name, or the library cannot be read.
    """
    return functions(library)[_address_of(library, symbol)].instructions()


def loops_of(library: Path, symbol: str) -> list[Loop]:
    """The innermost loops that multiply and add, of a function and of all that it calls directly.

    Raises:
        UnreadableError: there is none of that name, or the library cannot be read.
    """
    known = functions(library)
    reached = [_address_of(library, symbol)]
    loops = []
    for address in reached:
        instructions = known[address].instructions()
        calls = dict.fromkeys(one.target for one in instructions if one.target in known)
        reached += [callee for callee in calls if callee is not None and callee not in reached]
        loops += [Loop(known[address], tuple(body)) for body in innermost_loops(instructions, _is_multiply_add)]
    return loops


def main_loop(loops: Sequence[Loop], forms: Sequence[str] = ()) -> Loop | None:
    """The loop with the most accumulators, of several the one with the most multiply-adds, then the tightest.

    Args:
        loops: the candidates.
        forms: patterns of names of functions; only those count that have the first one which any has.
    """
    for form in forms:
        if of_form := [loop for loop in loops if re.search(form, loop.function.name)]:
            loops = of_form
            break
    return max(loops, key=_rank, default=None)


def _is_multiply_add(text: str) -> bool:
    return kind(text) == "multiply-adds"


def _rank(loop: Loop) -> tuple[int, int, int]:
    return len(accumulators(loop.body)), multiply_adds(loop.body), -len(loop.body)


def accumulators(loop: Sequence[Instruction]) -> set[str]:
    """Places whose value goes round the loop and is changed by adding products to it, and in no other way.

    A place is a register or, for sums that find none, a slot of the stack. The sum may pass through others on its way:
    compilers rename registers from one copy of an unrolled body to the next.
    """
    # For each place: the one whose value at the beginning of the loop it has, and how many products were added.
    now: dict[str, tuple[str, int]] = {}
    for instruction in loop:
        mnemonic, operands = _split(instruction.text)
        places = [_place(operand) for operand in operands]
        if not places or not places[-1]:
            continue
        values = [now.get(place, (place, 0)) for place in places]
        if adds := _ADDS.match(mnemonic):
            origin, products = values[_ADDEND.get(adds["order"], -1)]
            now[places[-1]] = origin, products + 1
        else:
            now[places[-1]] = values[0] if _COPY.match(mnemonic) else ("", 0)
    return {place for place, (origin, products) in now.items() if origin == place and products}


def multiply_adds(loop: Sequence[Instruction]) -> int:
    """How many multiply-adds of vectors or tiles there are."""
    return sum(_is_multiply_add(instruction.text) for instruction in loop)


def kind(text: str) -> str:
    """Which of ``KINDS`` an instruction is, by objdump's AT&T syntax."""
    mnemonic, operands = _split(text)
    if _BRANCH.match(mnemonic):
        return "branches"
    if mnemonic.startswith("prefetch"):
        return "prefetches"
    if not any(_VECTOR.search(operand) for operand in operands):
        return "scalar"
    if _MULTIPLY_ADD.match(mnemonic):
        return "multiply-adds"
    if _MOVES.match(mnemonic):
        if "(" in operands[-1]:
            return "stores"
        if any("(" in operand for operand in operands):
            return "loads"
    return "shuffles" if _SHUFFLE.match(mnemonic) else "other vector"


def vector_reads(loop: Sequence[Instruction]) -> int:
    """How many instructions on vectors or tiles read memory, by a load of their own or as an operand."""
    reads = 0
    for instruction in loop:
        _, operands = _split(instruction.text)
        vector = kind(instruction.text) not in ("scalar", "prefetches", "branches", "stores")
        reads += vector and any("(" in operand for operand in operands)
    return reads


def kernel_code(kernel: str, isa: str, library: Path, symbol: str, forms: Sequence[str] = ()) -> Code:
    """The main loop of a kernel, counted.

    Args:
        kernel: name of the kernel.
        isa: its instruction set.
        library: the file that holds it.
        symbol: name of its entry point there.
        forms: see :func:`main_loop`.

    Raises:
        UnreadableError: objdump is missing, or the library has no such function or no loop in it.
    """
    loops = loops_of(library, symbol)
    loop = main_loop(loops, forms)
    if loop is None:
        raise UnreadableError(f"{library.name}: {symbol} has no loop of x86-64 that multiplies and adds vectors")
    body, products, reads = loop.body, multiply_adds(loop.body), vector_reads(loop.body)
    facts: dict[str, str | int | float] = {
        "function": short(loop.function.name),
        "instructions": len(body),
        "accumulators": len(accumulators(body)),
        "vector reads": reads,
        "reads per multiply-add": round(reads / products, 3),
    }
    listing = Listing("main loop", as_lines(body), facts, count((kind(one.text) for one in body), KINDS))
    note = f"largest tile of {len(loops)} loops that multiply and add; tails and other cases run on the others"
    return Code(kernel, isa, library.name, (listing,), (note,))


def _address_of(library: Path, symbol: str) -> int:
    for address, function in functions(library).items():
        if function.name == symbol:
            return address
    raise UnreadableError(
        f"{library.name}: expected a function {symbol}, found none; if the library was stripped of its names, "
        "build it anew: pip install --force-reinstall --no-deps ."
    )


def _split(text: str) -> tuple[str, list[str]]:
    """Mnemonic and operands; the commas of an address separate none."""
    mnemonic, _, rest = _PREFIXES.sub("", text).partition(" ")
    return mnemonic, [operand.strip() for operand in re.split(r",(?![^(]*\))", rest) if operand.strip()]


def _place(operand: str) -> str:
    """Where a vector lies, whatever its width; empty if that may be elsewhere the next time."""
    register = _VECTOR.match(operand)
    if register:
        return re.sub("[yz]mm", "xmm", register[0])
    return operand if _STACK_SLOT.match(operand) else ""
