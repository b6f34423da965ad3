"""The code of a kernel as people read it, whatever machine it is for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


class UnreadableError(Exception):
    """Code that cannot be shown: what was looked for, what is missing, and what to do."""


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        address: where it lies.
        text: as the disassembler prints it, without its comment.
        target: the address that it jumps to or calls; None if it does neither, or by a register.
    """

    address: int
    text: str
    target: int | None = None


@dataclass(frozen=True)
class Listing:
    """One stage of a kernel's code.

    Attributes:
        title: such as ``main loop`` or ``ttgir``.
        lines: the text.
        facts: what is known of it as a whole, such as the registers that it takes.
        mix: how many instructions there are of each kind.
    """

    title: str
    lines: tuple[str, ...]
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    mix: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Code:
    """The code of a kernel, from the first stage to the last.

    Attributes:
        kernel: its name in the kernel table.
        target: the instruction set or architecture that it is for.
        source: what it was read from.
        listings: the stages, in the order in which a compiler makes them.
        notes: what else runs, or other forms of the same kernel.
    """

    kernel: str
    target: str
    source: str
    listings: tuple[Listing, ...]
    notes: tuple[str, ...] = ()


def innermost_loops(instructions: Sequence[Instruction], matters: Callable[[str], bool]) -> list[list[Instruction]]:
    """The loops of a function, each from a jump backwards to its target, that do what matters and hold no other such.

    Args:
        instructions: of one function, by ascending address.
        matters: whether an instruction, given by its text, makes a loop count.
    """
    place = {instruction.address: index for index, instruction in enumerate(instructions)}
    wanted = [index for index, instruction in enumerate(instructions) if matters(instruction.text)]
    spans: set[tuple[int, int]] = set()
    for index, instruction in enumerate(instructions):
        start = place.get(instruction.target) if instruction.target is not None else None
        if start is not None and any(start <= at <= index for at in wanted):
            spans.add((start, index))
    inner: list[tuple[int, int]] = []
    # By their ends, and of those with one end the shortest first. So the starts of ``inner`` ascend, and a loop holds
    # another one exactly if it holds the last of them.
    for start, end in sorted(spans, key=lambda span: (span[1], -span[0])):
        if not inner or inner[-1][0] < start:
            inner.append((start, end))
    return [list(instructions[start : end + 1]) for start, end in inner]


def count(found: Iterable[str], kinds: Sequence[str]) -> dict[str, int]:
    """How many there are of each kind, in the order of ``kinds``, without those that there are none of."""
    counted = Counter(found)
    return {kind: counted[kind] for kind in kinds if counted[kind]}


def as_lines(instructions: Iterable[Instruction]) -> tuple[str, ...]:
    """Instructions with their addresses."""
    return tuple(f"{instruction.address:6x}  {instruction.text}" for instruction in instructions)


def short(name: str) -> str:
    """A demangled name without namespaces, result and arguments, such as ``TokensStrip<Vec8, 4, 3>::run<true>``."""
    name = re.sub(r"\b[a-z]\w*::", "", name.replace("(anonymous namespace)::", ""))
    return name.partition("(")[0].removeprefix("void ")
