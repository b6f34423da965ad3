"""The block kernel for TMA, compiled: warps that only fetch, the depth that was meant, nothing spilled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from offline import SHARED, Launch, launches, multiplier, recorded, stack_bytes

from sparsekern.backends.triton import ops, tiles
from sparsekern.backends.triton.kernels.block_tma import block_linear_tma_kernel
from sparsekern.layouts import Block, pack

if ops.INTERPRET:
    pytest.skip("compiles, which TRITON_INTERPRET=1 turns off", allow_module_level=True)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
MANY = 2 * 256 * tiles.MULTIPROCESSORS
"""Tokens for the widest tile."""

CASES = [
    # rows, cols, tokens, activation, dtype; the tokens of the tile
    (128, 128, MANY, "silu", BF16, 256),
    (128, 64, MANY, "none", FP16, 256),
    (128, 128, MANY, "gelu", BF16, 128),
    (128, 256, 200, "gelu", FP16, 128),
    (64, 64, MANY, "gelu", BF16, 256),
    (64, 128, 65, "relu", FP16, 128),
]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        yield


def launch(
    capability: int,
    rows: int,
    cols: int,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
    activation: str = "none",
    dtype: torch.dtype = BF16,
) -> Launch:
    """What a product with two block rows and a bias launches."""
    parts = list(pack(torch.ones(2 * rows, 2 * cols, dtype=dtype), Block(rows, cols)).tensors)
    shape = (2 * rows, 2 * cols)
    return recorded(capability, "triton_block_linear", parts, (), shape, tokens, dtype, monkeypatch, activation)


@pytest.mark.parametrize("capability", tiles.TMA_WARPS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)).replace("torch.", ""))
def test_tiles_come_by_tma(
    capability: int, case: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cols, tokens, activation, dtype, held = case
    found = launch(capability, rows, cols, tokens, monkeypatch, activation, dtype)
    assert found.kernel is block_linear_tma_kernel and found.constants["TOKENS"] == held
    compiled = found.compile(capability)
    assert multiplier(compiled) == {90: "wgmma.mma_async", 100: "tcgen05.mma"}[capability]
    ptx = compiled.asm["ptx"]
    assert "cp.async.bulk.tensor.2d" in ptx and "mbarrier.try_wait" in ptx
    assert "cp.async.c" not in ptx, "no part of a tile is copied by pointers"
    step = (held + rows) * 64 * 2
    assert compiled.metadata.shared // step == tiles.TMA_STAGES[rows, held]
    assert compiled.metadata.shared <= SHARED[capability]
    assert stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize(
    "capability, warps, tasks",
    [(90, ["4", "4"], ["fetch", "multiply", "multiply"]), (100, ["1", "2"], ["", "fetch", "multiply"])],
)
@pytest.mark.parametrize("rows", [64, 128])
def test_some_warps_only_fetch(
    capability: int, warps: list[str], tasks: list[str], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir = launch(capability, rows, 128, MANY, monkeypatch).compile(capability).asm["ttgir"]
    assert re.findall(r"partition\d+\(.*num_warps\((\d+)\)", ir) == warps
    found = []
    for part in re.split(r"\n\s+(?:default|partition\d+\()", ir)[1:]:
        fetches, multiplies = (
            "async_tma_copy_global_to_local" in part,
            "warp_group_dot " in part or "tc_gen5_mma" in part,
        )
        found.append("fetch" * fetches + "multiply" * multiplies)
    assert sorted(found) == tasks


def test_each_launch_says_where_its_descriptors_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    allocators: list[Any] = []
    monkeypatch.setattr(ops.triton, "set_allocator", allocators.append)
    found = [launch(90, 64, 64, 128, monkeypatch) for _ in range(2)]
    assert allocators == [ops._descriptor_memory] * 2
    assert found[0].compile(90).metadata.global_scratch_size == 2 * 128


def test_what_tma_does_not_take_goes_by_pointers() -> None:
    def chosen(capability: int, rows: int = 128, cols: int = 64, outputs: int = 256, tokens: int = 128) -> bool:
        return tiles.tma_tile(capability, rows, cols, (tokens, outputs), 2, "none") is not None

    assert chosen(90) and chosen(100) and chosen(103)
    assert not chosen(80) and not chosen(89) and not chosen(120)
    assert not chosen(90, rows=32) and not chosen(90, cols=32)
    assert not chosen(90, outputs=250) and not chosen(90, tokens=64)
    assert tiles.tma_tile(90, 128, 64, (128, 256), 4, "none") is None


def test_operands_begin_where_tma_can_fetch_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values, columns, offsets = pack(torch.ones(128, 128, dtype=BF16), Block(64, 64)).tensors
    memory = torch.zeros(200 * 129 + 8, dtype=BF16)
    layouts = {
        "as it is": memory[: 200 * 128].view(200, 128),
        "between other numbers": memory[8 : 8 + 200 * 128].view(100, 256)[:, :128],
        "rows at odd places": memory[: 200 * 129].view(200, 129)[:, :128],
        "at an odd place": memory[1 : 1 + 200 * 128].view(200, 128),
        "one row many times": memory[:128].expand(200, 128),
        "by columns": memory[: 200 * 128].view(128, 200).T,
    }
    for name, x in layouts.items():
        with launches(90, monkeypatch) as seen:
            torch.ops.sparsekern.triton_block_linear(x, values, columns, offsets, None, 128, 128, "none")
        assert seen[0].kernel is block_linear_tma_kernel
        rows, stride = seen[0].arguments[0], seen[0].arguments[-1]
        assert rows.data_ptr() % 16 == 0 and stride * 2 % 16 == 0 and stride >= 128, name
        assert (rows.data_ptr() == x.data_ptr()) == (name in ("as it is", "between other numbers")), name
    odd = torch.zeros(values.numel() + 1, dtype=BF16)[1:].view(values.shape)
    with launches(90, monkeypatch) as seen:
        torch.ops.sparsekern.triton_block_linear(x, odd, columns, offsets, None, 128, 128, "none")
        wide = torch.zeros(len(values), dtype=torch.int32)
        torch.ops.sparsekern.triton_block_linear(x, values, wide, offsets, None, 128, 128, "none")
    assert [launch.kernel for launch in seen] == [ops.block_linear_kernel] * 2
