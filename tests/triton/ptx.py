"""Executes PTX on a CPU, as far as one kernel needs it: Triton's interpreter knows neither Gluon nor assembly.

A register is an array over the threads of a program. Branches must be taken by all threads or by none. ``mma.sp`` is
its definition in the PTX ISA 9.7.14.6. An instruction that is not known here is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Words = np.ndarray[Any, np.dtype[np.uint64]]

_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+)\s+)?([\w.:]+)(?:\s+(.*))?;$")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


class Program:
    """A kernel's instructions, and a memory of whole tensors.

    Args:
        ptx: a module with one entry.
        threads: threads of a program, a multiple of 32.
    """

    def __init__(self, ptx: str, threads: int) -> None:
        body = ptx[ptx.index("\n{") + 2 : ptx.rindex("\n}")]
        lines = [re.sub(r"//.*", "", line).strip() for line in body.splitlines()]
        self.code = [line for line in lines if line and not line.startswith(".")]
        self.labels = {line[:-1]: i for i, line in enumerate(self.code) if line.endswith(":")}
        self.threads = threads

    def run(self, grid: tuple[int, int], arguments: Sequence[Tensor | int]) -> None:
        """Run every program of the grid; tensors are changed in place."""
        # Between the tensors lies memory that belongs to nobody, so that an access beside one is an error.
        addresses, end = [], 1 << 12
        for argument in arguments:
            addresses.append(end if isinstance(argument, Tensor) else argument)
            if isinstance(argument, Tensor):
                end = -(-(end + argument.nbytes) // 256) * 256 + (1 << 12)
        self.memory, self.owned = np.zeros(end, np.uint8), np.zeros(end, bool)
        pieces = [(a, t) for a, t in zip(addresses, arguments, strict=True) if isinstance(t, Tensor)]
        for address, tensor in pieces:
            self.memory[address : address + tensor.nbytes] = tensor.flatten().view(torch.uint8).numpy()
            self.owned[address : address + tensor.nbytes] = True
        for y in range(grid[1]):
            for x in range(grid[0]):
                self._program((x, y), addresses)
        for address, tensor in pieces:
            data = torch.from_numpy(self.memory[address : address + tensor.nbytes].copy())
            tensor.copy_(data.view(tensor.dtype).view(tensor.shape))

    def _program(self, place: tuple[int, int], parameters: list[int]) -> None:
        everyone = np.zeros(self.threads, np.uint64)
        self.registers: dict[str, Words] = {
            "%tid.x": np.arange(self.threads, dtype=np.uint64),
            "%ctaid.x": everyone + np.uint64(place[0]),
            "%ctaid.y": everyone + np.uint64(place[1]),
        }
        self.parameters = parameters
        at = 0
        while at < len(self.code):
            line = self.code[at]
            at += 1
            if line.endswith(":"):
                continue
            found = _INSTRUCTION.match(line)
            assert found, line
            negated, guard, name, rest = found.groups()
            active = np.ones(self.threads, bool)
            if guard:
                active = (self.registers[guard] != 0) ^ bool(negated)
            operands = [operand.strip() for operand in _OPERAND.findall(rest or "")]
            if name == "ret":
                return
            if name.startswith("bra"):
                assert active.all() or not active.any(), "threads part"
                at = self.labels[operands[0]] if active.all() else at
            else:
                self._execute(name.split("."), operands, active)

    def _value(self, operand: str) -> Words:
        if operand.startswith("%"):
            return self.registers[operand]
        number = int(operand[2:], 16) if operand[:2] in ("0f", "0x") else int(operand)
        return np.full(self.threads, number & (2**64 - 1), np.uint64)

    def _number(self, operand: str, kind: str) -> Words:
        """A value, extended to 64 bits as its type says."""
        bits, value = int(kind[1:]), self._value(operand)
        value = value << np.uint64(64 - bits)
        signed = (value.view(np.int64) >> np.int64(64 - bits)).view(np.uint64)
        return signed if kind[0] == "s" else value >> np.uint64(64 - bits)

    def _execute(self, name: list[str], operands: list[str], active: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        match name:
            case ["ld", "param", kind]:
                index = int(operands[1].strip("[]").rpartition("_")[2])
                words = np.full(self.threads, self.parameters[index], np.uint64)
            case ["ld", "global", *_, kind]:
                return self._load(operands, int(kind[1:]) // 8, active)
            case ["st", "global", kind]:
                return self._store(operands, int(kind[1:]) // 8, active)
            case ["mov", "b32"] if operands[0].startswith("{"):
                low, high = operands[0].strip("{} ").split(", ")
                for half, shift in ((low, 0), (high, 16)):
                    self._execute(["bfe", "u32"], [half, operands[1], str(shift), "16"], active)
                return None
            case ["mov", kind]:
                words = self._value(operands[1])
            case ["cvt", "rn", "bf16x2" | "f16x2" as target, "f32"]:
                # The first operand becomes the upper half.
                self._execute(["cvt", "rn", target[:-2], "f32"], ["%high", operands[1]], active)
                self._execute(["cvt", "rn", target[:-2], "f32"], ["%low", operands[2]], active)
                kind, words = "b32", self._value("%high") << np.uint64(16) | self._value("%low")
            case ["cvt", "rn", target, "f32"]:
                floats = torch.from_numpy(self._value(operands[1]).astype(np.uint32).view(np.float32))
                kind, words = "b16", floats.to(_DTYPES[target]).view(torch.int16).numpy().astype(np.uint64)
            case ["cvt", kind, source]:
                words = self._number(operands[1], source)
            case ["setp", relation, kind]:
                a, b = (self._number(operand, kind) for operand in operands[1:])
                a, b = (a.view(np.int64), b.view(np.int64)) if kind[0] == "s" else (a, b)
                kind, words = "b1", {"lt": a < b, "ne": a != b}[relation].astype(np.uint64)
            case ["and" | "or" as operation, kind]:
                a, b = map(self._value, operands[1:])
                words, kind = (a & b if operation == "and" else a | b), kind.replace("pred", "b1")
            case ["shl", kind]:
                words = self._value(operands[1]) << self._value(operands[2])
            case ["add", kind] | ["mul", "lo", kind]:
                a, b = map(self._value, operands[1:])
                words = a + b if name[0] == "add" else a * b
            case ["mul" | "mad", "wide", source]:
                words, kind = self._number(operands[1], source) * self._number(operands[2], source), "b64"
                words = words + self._value(operands[3]) if name[0] == "mad" else words
            case ["bfe", kind]:
                position, length = (int(operand) for operand in operands[2:])
                words = self._number(operands[1], kind) >> np.uint64(position) & np.uint64(2**length - 1)
            case ["mma", "sp::ordered_metadata", "sync", "aligned", "m16n8k32", "row", "col", "f32", dtype, _, "f32"]:
                assert active.all() and operands[-1] == "0x0"
                return self._mma_sp(operands, _DTYPES[dtype])
            case _:
                raise AssertionError(f"an instruction that this file does not know: {'.'.join(name)}")
        bits = 1 if kind == "b1" else int(kind[1:])
        before = self.registers.get(operands[0], np.zeros_like(words))
        self.registers[operands[0]] = np.where(active, words & np.uint64(2**bits - 1), before)

    def _places(self, operand: str, size: int, active: np.ndarray[Any, np.dtype[np.bool_]]) -> Words:
        """Addresses ``[active threads, size]`` of the bytes behind ``[register + offset]``."""
        register, _, offset = operand.strip("[] ").partition("+")
        addresses = self._value(register.strip())[active] + np.uint64(int(offset or 0))
        assert not (addresses % np.uint64(size)).any(), "misaligned"
        places = addresses[:, None] + np.arange(size, dtype=np.uint64)
        assert self.owned[places.astype(np.int64)].all(), "beside the tensors"
        return places

    def _load(self, operands: list[str], size: int, active: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        targets = operands[0].strip("{} ").replace(" ", "").split(",")
        data = self.memory[self._places(operands[1], size * len(targets), active).astype(np.int64)]
        for i, target in enumerate(targets):
            kept = self.registers[target].copy()
            part = data[:, i * size : (i + 1) * size].astype(np.uint64)
            kept[active] = (part << np.arange(0, 8 * size, 8, dtype=np.uint64)).sum(1, dtype=np.uint64)
            self.registers[target] = kept

    def _store(self, operands: list[str], size: int, active: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        words = self._value(operands[1].strip("{} "))[active]
        shifted = words[:, None] >> np.arange(0, 8 * size, 8, dtype=np.uint64)
        self.memory[self._places(operands[0], size, active).astype(np.int64)] = shifted.astype(np.uint8)

    def _mma_sp(self, operands: list[str], dtype: torch.dtype) -> None:
        names = [operand.strip("{} ").replace(" ", "").split(",") for operand in operands[:4]]
        # [warp, g, q, register, half of it]
        shape = (-1, 8, 4, 4)
        a, b = (
            torch.from_numpy(np.stack([self.registers[n] for n in names[i]], 1).astype(np.uint32).view(np.int16))
            .view(dtype)
            .double()
            .view(*shape, 2)
            for i in (1, 2)
        )
        c = torch.from_numpy(np.stack([self.registers[n] for n in names[3]], 1).astype(np.uint32).view(np.float32))
        metadata = self.registers[operands[4]].astype(np.int64).reshape(-1, 8, 4)
        left, right = torch.zeros(len(a), 16, 32, dtype=torch.float64), torch.zeros(len(a), 32, 8, dtype=torch.float64)
        product = c.view(shape).double().clone()
        for g in range(8):
            for q in range(4):
                for r in range(4):
                    row, group = g + 8 * (r % 2), q + 4 * (r // 2)
                    word = metadata[:, g, group // 4] >> (16 * (r % 2) + 4 * (group % 4))
                    assert ((word & 3) < (word >> 2 & 3)).all(), "places do not ascend"
                    for kept in range(2):
                        place = torch.from_numpy(word >> 2 * kept & 3) + 4 * group
                        left[torch.arange(len(a)), row, place] = a[:, g, q, r, kept]
                        right[:, 8 * r + 2 * q + kept, g] = b[:, g, q, r, kept]
        full = left @ right
        for g in range(8):
            for q in range(4):
                for i in range(4):
                    product[:, g, q, i] += full[:, g + 8 * (i // 2), 2 * q + i % 2]
        results = product.float().view(-1, 4).numpy().view(np.uint32).astype(np.uint64)
        for i, name in enumerate(names[0]):
            self.registers[name] = results[:, i].copy()
