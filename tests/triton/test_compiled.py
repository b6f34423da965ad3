"""The kernels compiled for every architecture, without a GPU: they fit, keep their depth, and use the tensor cores."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from offline import SHARED, Launch, block_launch, conv_launch, launches, multiplier, nm_launch, stack_bytes

from sparsekern.backends.triton import ops, tiles
from sparsekern.backends.triton.kernels import block
from sparsekern.layouts import Block, pack

if ops.INTERPRET:
    pytest.skip("compiles, which TRITON_INTERPRET=1 turns off", allow_module_level=True)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

BLOCK_CASES = [
    # rows, cols, tokens, dtype; first those that take the most shared memory
    (128, 64, 128, BF16),
    (128, 128, 64, FP32),
    (64, 64, 128, FP16),
    (128, 256, 16, BF16),
    (32, 32, 64, FP16),
    (16, 16, 128, BF16),
    (64, 16, 16, FP32),
]
CONV_CASES = [
    # rows, cols, channels, pixels, dtype; first those that take the most shared memory and registers
    (128, 64, 192, 128, BF16),
    (128, 16, 48, 128, FP16),  # several blocks a step
    (128, 128, 128, 64, FP32),
    (64, 64, 64, 128, FP16),
    (128, 256, 256, 16, BF16),
    (32, 32, 96, 64, FP16),
    (16, 16, 64, 128, BF16),
    (64, 16, 16, 16, FP32),
]
NM_CASES = [
    # n, m, tokens, dtype; first those that take the most shared memory and registers
    (8, 16, 64, BF16),
    (4, 8, 32, FP32),
    (2, 4, 128, BF16),
    (2, 4, 16, FP16),
    (1, 4, 64, BF16),
    (1, 2, 64, FP16),
]


def on_architectures(cases: list[Any], demanding: int) -> pytest.MarkDecorator:
    """All cases for 80, 90 and 100; for the others, whose instructions are those of 80, what may not fit them."""
    pairs = [(arch, *case) for arch in SHARED for case in cases[: None if arch in (80, 90, 100) else demanding]]
    return pytest.mark.parametrize("case", pairs, ids=lambda pair: "-".join(map(str, pair)).replace("torch.", ""))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # said, for otherwise Triton 3.9 warns that it will change
        yield


def expected_multiplier(capability: int, tokens: int, dtype: torch.dtype) -> str:
    """Warp groups multiply 64 tokens at least; float32 without rounding to TF32 is none of a tensor core's."""
    if dtype == FP32:
        return "fma"
    if tokens >= 64 and capability in (90, 100):
        return {90: "wgmma.mma_async", 100: "tcgen05.mma"}[capability]
    return "mma.sync"


def steps_held(launch: Launch, multiplied_by: str) -> int:
    """Steps that the pipeliner holds: with instructions that do not wait for themselves, the one in use on top."""
    return launch.stages - (multiplied_by in ("mma.sync", "fma"))


def compile_checked(launch: Launch, capability: int, tokens: int, dtype: torch.dtype, folder: Path) -> Any:
    """What every kernel must be: of the tile that was meant, with its instruction, copies ahead, no spills."""
    assert launch.constants["TOKENS"] == tokens
    compiled = launch.compile(capability)
    assert multiplier(compiled) == expected_multiplier(capability, tokens, dtype)
    assert compiled.asm["ptx"].count("cp.async.c") > 0
    assert stack_bytes(compiled, folder) == 0
    assert compiled.metadata.shared <= SHARED[capability]
    return compiled


@on_architectures(BLOCK_CASES, demanding=2)
def test_block_kernels(case: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capability, rows, cols, tokens, dtype = case
    launch = block_launch(capability, rows, cols, tokens, dtype, monkeypatch)
    compiled = compile_checked(launch, capability, tokens, dtype, tmp_path)
    step = (tokens + rows) * launch.constants["STEP"] * dtype.itemsize
    assert compiled.metadata.shared // step == steps_held(launch, multiplier(compiled))


@pytest.mark.parametrize("activation", ["gelu", "hardswish"])
@on_architectures(CONV_CASES, demanding=3)
def test_conv_kernels(case: tuple[Any, ...], activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capability, rows, cols, channels, pixels, dtype = case
    launch = conv_launch(capability, Block(rows, cols), channels, pixels, dtype, monkeypatch, activation)
    compiled = compile_checked(launch, capability, pixels, dtype, tmp_path)
    # Activations and weights, 16 bytes at once.
    assert {*re.findall(r"cp\.async\.c.*, (0x\w+), ", compiled.asm["ptx"])} == {"0x10"}
    step = (pixels + rows) * launch.constants["STEP"] * dtype.itemsize
    assert compiled.metadata.shared // step == steps_held(launch, multiplier(compiled))


@on_architectures(NM_CASES, demanding=3)
def test_nm_kernels(case: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capability, n, m, tokens, dtype = case
    launch = nm_launch(capability, n, m, tokens, dtype, monkeypatch)
    compiled = compile_checked(launch, capability, tokens, dtype, tmp_path)
    # Activations and packed values of each step that is held.
    inputs = 8 * m * launch.constants["GROUP_TILES"]
    step = (tokens + 16 * launch.constants["ROW_TILES"] * n // m) * inputs * dtype.itemsize
    assert compiled.metadata.shared >= steps_held(launch, multiplier(compiled)) * step


@pytest.mark.parametrize("capability", [80, 90])
def test_odd_sides(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows of the output begin anywhere; those of the activations were padded, or nothing would be copied in the
    # background.
    x, parts = torch.empty(200, 101, dtype=BF16), pack(torch.ones(77, 101, dtype=BF16), Block(64, 32)).tensors
    with launches(capability, monkeypatch) as seen:
        torch.ops.sparsekern.triton_block_linear(x, *parts, None, 77, 101, "none")
    compiled = seen[0].compile(capability)
    assert compiled.asm["ptx"].count("cp.async.c") > 0 and stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize("capability", [80, 90])
def test_a_column_loaded_where_it_is_used_costs_stages(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = block_launch(capability, 64, 64, 128, BF16, monkeypatch, wide=True)
    carried = launch.compile(capability)
    in_loop = launch.compile(capability, uncarried(tmp_path).block_linear_kernel)
    step = (128 + 64) * 64 * 2
    assert carried.metadata.shared // step == {80: 3, 90: 4}[capability]
    assert in_loop.metadata.shared // step == {80: 1, 90: 2}[capability]


def uncarried(folder: Path) -> Any:
    """The module of the block kernel, but that each step loads its own columns."""
    source = Path(block.__file__).read_text()
    carried = "        step_inputs = _step_inputs(columns, first + STEP, end, COLS, STEP)\n"
    loop = "    for first in tl.range(start, end, STEP):\n"
    assert source.count(carried) == source.count(loop) == 1
    source = source.replace(carried, "").replace(loop, loop + carried.replace("first + STEP", "first"))
    (folder / "uncarried.py").write_text(source.replace("from .common", f"from {block.__package__}.common"))
    spec = importlib.util.spec_from_file_location("uncarried", folder / "uncarried.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop("uncarried", None)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rows", tiles.BLOCK_ROWS)
def test_the_largest_step_leaves_room_for_what_the_table_says(rows: int) -> None:
    for capability, limit in SHARED.items():
        tile = tiles.block_tile(capability, rows, 10_000, 2)
        held = tile.stages - (capability not in (90, 100))
        programs = 1 if rows == 128 else 2
        # Of each program's shared memory the system takes 1 KiB.
        assert programs * (held * (tile.tokens + rows) * tile.step * 2 + 1024) <= limit + 1024
