"""The CUDA kernels of csrc/cuda, the very same sources, compiled by g++ and run on the CPU by this folder's emulator.

Runs without the compiled library of the package, and without nvcc.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import Geometry
from sparsekern.layouts.compressed import decode_columns
from sparsekern.ops_conv import CONV_ACTIVATIONS

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX", "c++").split()
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC"]
NUMBERS = {torch.bfloat16: 0, torch.float16: 1}


def compile_machine(folder: Path) -> list[Path]:
    """The objects that are the same whatever kernels run: the emulator itself, and the tests' own kernels."""
    return _compile([*HERE.rglob("*.cpp"), *HERE.glob("*.cu")], folder, ROOT / "csrc")


def build(folder: Path, machine: Sequence[Path], csrc: Path = ROOT / "csrc") -> Path:
    """Compile the kernels of ``csrc`` and link them with the ``machine`` into a library in ``folder``."""
    kernels = _compile([*(csrc / "cuda").rglob("*.cu"), csrc / "cuda" / "kernel.cpp"], folder, csrc)
    library = folder / "emulated.so"
    _run(*COMPILER, "-shared", *machine, *kernels, "-o", library)
    return library


def _compile(sources: Sequence[Path], folder: Path, csrc: Path) -> list[Path]:
    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        _run(*COMPILER, *FLAGS, f"-I{HERE}", f"-I{csrc}", "-x", "c++", "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-6000:]}"


class _Fields(ctypes.Structure):
    """A struct of entries.cpp, filled by its names."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{name: v.data_ptr() if isinstance(v, Tensor) else v for name, v in values.items()})


class Product(_Fields):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "bias", "y", "partials")),
        *((name, ctypes.c_int64) for name in ("x_stride", "tokens", "inputs", "outputs", "padded_outputs")),
        *((name, ctypes.c_int32) for name in ("activation", "number", "parts")),
    )


class BlockWeight(_Fields):
    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("values", "columns", "offsets", "counts", "block_rows_of_columns", "blocks_of_columns")
        ),
        *((name, ctypes.c_int32) for name in ("rows", "cols", "block_rows", "block_columns")),
    )


class ConvGeometry(_Fields):
    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            *("image", "row", "pixel", "channels", "kernel_width"),
            *("height", "out_height", "stride_down", "padding_down", "dilation_down"),
            *("width", "out_width", "stride_right", "padding_right", "dilation_right"),
        )
    )


class NMWeight(_Fields):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "positions")),
        *((name, ctypes.c_int32) for name in ("row_tiles", "group_tiles")),
    )


class Gradient(_Fields):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "grad", "grad_values")),
        *((name, ctypes.c_int64) for name in ("x_stride", "grad_stride", "tokens")),
        *((name, ctypes.c_int32) for name in ("blocks", "number")),
    )


class Columns(_Fields):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("counts", "block_rows", "blocks"))


@dataclass(frozen=True)
class Access:
    """What the accesses of one place in a kernel cost, in sectors of global or passes of shared memory."""

    kind: str
    site: str
    instructions: int
    bytes: int
    taken: int
    least: int


@dataclass(frozen=True)
class Counters:
    instructions: dict[str, int]
    accesses: list[Access]
    shared_bytes: int  # of the launch that asked for most

    def of(self, *kinds: str) -> list[Access]:
        return [access for access in self.accesses if access.kind in kinds]


class KernelError(Exception):
    """What the emulator found wrong."""


class Emulator:
    """A library that :func:`build` made."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        entries = ("block_kernel", "conv_kernel", "nm_kernel", "grad_values_kernel", "columns_kernel", "fault", "probe")
        for name in ("emulator_fault", "emulator_counters", "chosen_kernel", *(f"run_{entry}" for entry in entries)):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.emulator_writing_block.restype = ctypes.c_int64
        self.library.emulated_quotient.restype = ctypes.c_uint32
        self.partials = torch.empty(0)
        """What the thread blocks of the last product left that shared strips: ``[parts, tokens, padded outputs]``."""

    def counters(self) -> Counters:
        """Those since the last call."""
        told = json.loads(self.library.emulator_counters())
        accesses = [Access(**access) for access in told["accesses"]]
        return Counters(told["instructions"], accesses, self.library.emulator_shared_bytes())

    def chosen(self, granularity: sk.Granularity, tokens: int) -> str:
        """The line of the table that fits first."""
        rows = granularity.rows if isinstance(granularity, sk.Block) else 1
        name = self.library.chosen_kernel(isinstance(granularity, sk.NM), ctypes.c_int64(rows), ctypes.c_int64(tokens))
        return name.decode()

    def parts(
        self, strips: int, slices: int, slice_bytes: int, outputs: int, tokens: int, sms: int, rate: float
    ) -> int:
        """Into how many parts strips are cut on a GPU of so many SMs and bytes a nanosecond."""
        sizes = (ctypes.c_int64(strips), ctypes.c_int64(slices), slice_bytes, *map(ctypes.c_int64, (outputs, tokens)))
        return self.library.chosen_parts(*sizes, sms, ctypes.c_double(rate))

    def blocks(
        self,
        kernel: str,
        packed: sk.PackedWeight,
        x: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        transposed: bool = False,
        parts: int = 1,
    ) -> Tensor:
        """``activation(x @ W.T + bias)``, or ``x @ W`` if transposed, by a kernel of blocks.

        ``parts``: of a strip, for a kernel of few tokens.

        Raises:
            KernelError: the kernel did what a GPU does not promise to carry out.
        """
        arrays, sizes = block_arrays(packed)
        if transposed:
            arrays |= columns_of(arrays["columns"].int(), arrays["offsets"], sizes["block_columns"])
        weight = BlockWeight(**arrays, **sizes)
        outputs = packed.shape[1 if transposed else 0]
        return self._multiply(
            "run_block_kernel", kernel, weight, arrays, x, outputs, bias, activation, parts, packed.granularity.rows
        )

    def conv(
        self,
        kernel: str,
        packed: sk.PackedWeight,
        x: Tensor,
        numbers: Sequence[Any],
        bias: Tensor | None = None,
        activation: str = "none",
    ) -> Tensor:
        """``activation(conv2d(x, W) + bias)``, channels-last, by a kernel of blocks; raises as :meth:`blocks`.

        ``numbers``: stride, padding, dilation and groups, of which there is one.
        """
        geometry = Geometry(packed.dense_shape, *numbers)
        (outputs, channels, _, kernel_width), (stride, padding, dilation, groups) = packed.dense_shape, numbers
        assert groups == 1
        (batch, _, height, width), (out_height, out_width) = x.shape, geometry.output_size(x.shape[2:])
        images = aligned(x.permute(0, 2, 3, 1))
        y = aligned(torch.full((batch, out_height, out_width, outputs), float("nan"), dtype=x.dtype))
        arrays, sizes = block_arrays(packed)
        product = Product(
            x=images, bias=bias, y=y, tokens=batch * out_height * out_width, inputs=packed.shape[1], outputs=outputs,
            activation=CONV_ACTIVATIONS.index(activation), number=NUMBERS[x.dtype], parts=1,
        )  # fmt: skip
        places = ConvGeometry(
            image=images.stride(0), row=images.stride(1), pixel=images.stride(2),
            channels=channels, kernel_width=kernel_width,
            height=height, out_height=out_height, width=width, out_width=out_width,
            stride_down=stride[0], padding_down=padding[0], dilation_down=dilation[0],
            stride_right=stride[1], padding_right=padding[1], dilation_right=dilation[1],
        )  # fmt: skip
        inputs = {"x": images, **arrays} if bias is None else {"x": images, "bias": bias, **arrays}
        self._run("run_conv_kernel", kernel, product, BlockWeight(**arrays, **sizes), inputs, {"y": y}, places)
        return y.permute(0, 3, 1, 2)

    def quotient(self, number: int, divisor: int) -> int:
        """What kernels of convolutions make of ``number / divisor``."""
        return self.library.emulated_quotient(ctypes.c_uint32(number), ctypes.c_uint32(divisor))

    def nm(
        self,
        kernel: str,
        packed: sk.PackedWeight,
        x: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        parts: int = 1,
    ) -> Tensor:
        """``activation(x @ W.T + bias)`` by a kernel of 2:4; raises as :meth:`blocks`."""
        arrays = {"values": aligned(packed.values.view(torch.int16)), "positions": aligned(packed.parts["positions"])}
        row_tiles, group_tiles = packed.values.shape[:2]
        weight = NMWeight(**arrays, row_tiles=row_tiles, group_tiles=group_tiles)
        return self._multiply("run_nm_kernel", kernel, weight, arrays, x, packed.shape[0], bias, activation, parts, 32)

    def grad_values(self, kernel: str, packed: sk.PackedWeight, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of the packed values of blocks, given that of the output; raises as :meth:`blocks`."""
        parts, sizes = block_arrays(packed)
        del parts["values"]
        rows = {"x": padded_rows(x), "grad": padded_rows(grad)}
        result = aligned(torch.full_like(packed.values, float("nan")))
        gradient = Gradient(
            **rows, grad_values=result, x_stride=rows["x"].shape[1], grad_stride=rows["grad"].shape[1],
            tokens=len(x), blocks=len(packed.values), number=NUMBERS[x.dtype],
        )  # fmt: skip
        self._run(
            "run_grad_values_kernel", kernel, gradient, BlockWeight(**parts, **sizes), parts | rows, {"y": result}
        )
        return result

    def columns(self, packed: sk.PackedWeight) -> dict[str, Tensor]:
        """The index of the transpose, as :func:`columns_of` returns it."""
        parts, sizes = block_arrays(packed)
        del parts["values"]
        grid = (sizes["block_columns"], sizes["block_rows"])
        made = {"counts": torch.full(grid[:1], -1), "block_rows": torch.full(grid, -1), "blocks": torch.full(grid, -1)}
        made = {name: aligned(array.int()) for name, array in made.items()}
        weight = BlockWeight(**parts, **sizes)
        self._run("run_columns_kernel", "block_columns_index", Columns(**made), weight, parts, made)
        names = {"block_rows": "block_rows_of_columns", "blocks": "blocks_of_columns"}
        return {names.get(name, name): array for name, array in made.items()}

    @contextlib.contextmanager
    def backwards(self) -> Iterator[None]:
        """Launches run their thread blocks in the opposite order."""
        self.library.emulator_run_backwards(1)
        try:
            yield
        finally:
            self.library.emulator_run_backwards(0)

    def writing_block(self, y: Tensor, *place: int) -> int:
        """Number of the thread block that wrote a place of ``y`` in the last launch."""
        offset = sum(i * stride for i, stride in zip(place, y.stride(), strict=True)) * y.element_size()
        return self.library.emulator_writing_block(ctypes.c_void_p(y.data_ptr() + offset))

    def fault(self, kernel: str) -> None:
        """Run a kernel of faults.cu; raises as :meth:`blocks`."""
        x = aligned(torch.arange(64, dtype=torch.int32))
        y = aligned(torch.zeros(64, dtype=torch.int32))
        self._hand_over({"x": x}, {"y": y})
        self._check(self.library.run_fault(kernel.encode(), _address(x), _address(y)))

    def probe(self, instruction: str, a: Tensor, b: Tensor | None = None, metadata: Tensor | None = None) -> Tensor:
        """The registers ``[32, 4]`` that an instruction leaves, as float32: ``a`` and ``b`` are int32 ``[32, 4]``."""
        b = torch.zeros(32, 4, dtype=torch.int32) if b is None else b
        metadata = torch.zeros(32, dtype=torch.int32) if metadata is None else metadata
        inputs = {"a": aligned(a), "b": aligned(b), "metadata": aligned(metadata)}
        d = aligned(torch.zeros(32, 4))
        self._hand_over(inputs, {"d": d})
        self._check(self.library.run_probe(instruction.encode(), *map(_address, (*inputs.values(), d))))
        return d

    def _multiply(
        self,
        entry: str,
        kernel: str,
        weight: _Fields,
        arrays: dict[str, Tensor],
        x: Tensor,
        outputs: int,
        bias: Tensor | None,
        activation: str,
        parts: int,
        pad: int,
    ) -> Tensor:
        rows = padded_rows(x)
        y = aligned(torch.full((len(x), outputs), float("nan"), dtype=x.dtype))
        padded = -(-outputs // pad) * pad
        self.partials = aligned(torch.full((parts if parts > 1 else 0, len(x), padded), float("nan")))
        product = Product(
            x=rows, bias=bias, y=y, partials=self.partials, x_stride=rows.shape[1], tokens=len(x),
            inputs=rows.shape[1], outputs=outputs, padded_outputs=padded,
            activation=CONV_ACTIVATIONS.index(activation), number=NUMBERS[x.dtype], parts=parts,
        )  # fmt: skip
        inputs = {"x": rows, **arrays} if bias is None else {"x": rows, "bias": bias, **arrays}
        self._run(entry, kernel, product, weight, inputs, {"y": y, "partials": self.partials})
        return y

    def _run(
        self,
        entry: str,
        kernel: str,
        product: _Fields,
        weight: _Fields,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        *more: _Fields,
    ) -> None:
        self._hand_over(inputs, outputs)
        structs = map(ctypes.byref, (product, weight, *more))
        self._check(getattr(self.library, entry)(kernel.encode(), *structs))

    def _hand_over(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """What kernels may read, and what they may write; nothing else."""
        self.library.emulator_forget_buffers()
        for name, array in (inputs | outputs).items():
            assert array.is_contiguous()
            size = ctypes.c_int64(array.numel() * array.element_size())
            self.library.emulator_add_buffer(name.encode(), _address(array), size, int(name in outputs))

    def _check(self, error: bytes) -> None:
        if error == b"cudaErrorLaunchFailure":
            raise KernelError(self.library.emulator_fault().decode())
        assert error == b"cudaSuccess", error.decode()


def _address(array: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.data_ptr())


def block_arrays(packed: sk.PackedWeight) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The packed tensors of blocks, where a GPU may have them, and the sizes of blocks and grid."""
    block = packed.granularity
    block_rows, block_columns = block.grid(packed.shape)
    parts = {
        "values": aligned(packed.values.view(torch.int16)),
        "columns": aligned(decode_columns(packed.parts["columns"]).to(torch.int16)),
        "offsets": aligned(packed.parts["offsets"]),
    }
    return parts, {"rows": block.rows, "cols": block.cols, "block_rows": block_rows, "block_columns": block_columns}


def padded_rows(x: Tensor) -> Tensor:
    """Rows at multiples of 16 bytes, with zeros behind the matrix's own numbers."""
    return aligned(torch.nn.functional.pad(x, (0, -x.shape[1] % 8)))


def aligned(array: Tensor) -> Tensor:
    """A copy at a multiple of 128 bytes, as memory of a GPU has it, with as much before any other behind it."""
    numbers = 128 // array.element_size()
    memory = array.new_empty(array.numel() + 2 * numbers)
    first = -memory.data_ptr() % 128 // array.element_size()
    copy = memory[first : first + array.numel()].view(array.shape)
    return copy.copy_(array)


def columns_of(columns: Tensor, offsets: Tensor, block_columns: int) -> dict[str, Tensor]:
    """The blocks of each block column, by ascending block rows: what kernels of gradients of inputs walk."""
    block_rows = len(offsets) - 1
    rows = torch.repeat_interleave(torch.arange(block_rows), offsets.diff().long())
    counts = torch.zeros(block_columns, dtype=torch.int32)
    rows_of = torch.full((block_columns, block_rows), -1, dtype=torch.int32)
    blocks_of = rows_of.clone()
    for block, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        place = int(counts[column])
        rows_of[column, place], blocks_of[column, place] = row, block
        counts[column] += 1
    return {"counts": counts, "block_rows_of_columns": rows_of, "blocks_of_columns": blocks_of}
