"""Compiling Triton kernels for GPUs that are not there, as the ops would launch them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sparsekern.backends.triton import ops, ops_conv  # noqa: E402
from sparsekern.layouts import NM, Block, pack  # noqa: E402

KIB = 1024
SHARED = {80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB}
"""Bytes of shared memory that a program may have (CUDA C++ programming guide, technical specifications)."""

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Launch:
    """A kernel with what it is called with, tensors and numbers in the order of its arguments."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int

    def compile(self, capability: int, kernel: Any = None) -> Any:
        """For a GPU, specialised as Triton does it at a call: multiples of 16 are known as such, and ones as ones."""
        kernel = kernel or self.kernel
        signature: dict[str, str] = {}
        constants, attributes = dict(self.constants), {}
        for i, (name, argument) in enumerate(zip(kernel.arg_names, self.arguments, strict=False)):
            if isinstance(argument, Tensor):
                signature[name] = TYPES[argument.dtype]
            elif argument == 1:
                constants[name] = 1
            else:
                signature[name] = "i32"
            if isinstance(argument, Tensor) or argument % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants, attributes)
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@contextmanager
def launches(capability: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """What the ops would launch on a GPU of that capability, instead of launching it. Takes CPU tensors."""
    seen: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
                seen.append(Launch(self.kernel, arguments, constants, num_warps, num_stages))

            return launch

    with monkeypatch.context() as patch:
        for module in (ops, ops_conv):
            patch.setattr(module, "wrap_triton", Recorder)
            patch.setattr(module, "_check", lambda *arguments: None)
        patch.setattr(ops, "_capability", lambda device: capability)
        yield seen


def stack_bytes(compiled: Any, folder: Path) -> int:
    """Bytes of local memory of a thread, where registers are spilled to."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True)
    (numbers,) = re.findall(r"STACK:(\d+) .*LOCAL:(\d+)", usage.stdout + usage.stderr)
    return sum(map(int, numbers))


def multiplier(compiled: Any) -> str:
    """The instruction that multiplies, of which the compiled kernel has only one kind."""
    ptx = compiled.asm["ptx"]
    found = [name for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma") if name in ptx]
    if not found and "fma.rn.f32" in ptx:
        return "fma"
    (name,) = found
    return name


def block_launch(
    capability: int,
    rows: int,
    cols: int,
    tokens: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    wide: bool = False,
) -> Launch:
    """What a product by pointers launches with an activation, a bias and sides that are multiples of the block's."""
    parts = list(pack(torch.ones(2 * rows, 2 * cols, dtype=dtype), Block(rows, cols)).tensors)
    if wide:
        parts[1] = torch.zeros(len(parts[0]), dtype=torch.int32)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "tma_tile", lambda *arguments: None)
        return recorded(capability, "triton_block_linear", parts, (), (2 * rows, 2 * cols), tokens, dtype, monkeypatch)


def nm_launch(
    capability: int, n: int, m: int, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    """What a product of whole tiles launches, with an activation and a bias."""
    parts = pack(torch.zeros(128, 32 * m, dtype=dtype), NM(n, m)).tensors
    return recorded(capability, "triton_nm_linear", parts, (n, m), (128, 32 * m), tokens, dtype, monkeypatch)


def conv_launch(
    capability: int,
    block: Block,
    channels: int,
    pixels: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    activation: str = "gelu",
) -> Launch:
    """What a convolution of 3x3 pixels launches, with a bias and numbers of which Triton makes no constants."""
    outputs = 2 * block.rows
    parts = pack(torch.ones(outputs, channels, 3, 3, dtype=dtype), block).tensors
    x = torch.empty(1, channels, 5, 3 * pixels, dtype=dtype).to(memory_format=torch.channels_last)
    numbers = ([outputs, channels, 3, 3], [2, 3], [2, 3], [4, 3], 1)
    with launches(capability, monkeypatch) as seen:
        torch.ops.sparsekern.triton_block_conv2d(x, *parts, x.new_empty(outputs), *numbers, activation)
    (launch,) = seen
    return launch


def recorded(
    capability: int,
    op: str,
    parts: list[Tensor],
    numbers: tuple[int, ...],
    shape: tuple[int, int],
    tokens: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    activation: str = "gelu",
) -> Launch:
    x, bias = torch.empty(tokens, shape[1], dtype=dtype), torch.empty(shape[0], dtype=dtype)
    with launches(capability, monkeypatch) as seen:
        getattr(torch.ops.sparsekern, op)(x, *parts, bias, *numbers, *shape, activation)
    (launch,) = seen
    return launch
