"""What the kernels' main loops cost: no bank conflicts, whole sectors, and no product that the zeros spare."""

import pytest
import torch
from convolutions import Convolution
from emulator import Counters, Emulator, block_arrays
from products import pack_random

import sparsekern as sk

TOKENS = 128
LEAST_SHARED_BYTES = 99 * 1024
"""What a thread block may have on any GPU from sm_80 on: those of sm_86, 89 and 120 have no more."""
BLOCK_KERNELS = {
    "block_h128": (sk.Block(128, 64), False),
    "block_h64": (sk.Block(64, 64), False),
    "block_h32": (sk.Block(32, 32), False),
    "block_h16": (sk.Block(16, 16), False),
    "block_grad_input_h128": (sk.Block(64, 128), True),
    "block_grad_input_h64": (sk.Block(64, 64), True),
    "block_grad_input_h32": (sk.Block(32, 32), True),
    "block_grad_input_h16": (sk.Block(16, 16), True),
}
CONV_KERNELS = {f"block_conv_h{rows}": (rows, cols) for rows, cols in ((128, 64), (64, 64), (32, 32), (16, 16))}
DECODE_KERNELS = {"block_decode_h32": sk.Block(64, 64), "block_decode_h16": sk.Block(16, 16)}


def check_memory(counters: Counters, after_the_loop: tuple[str, ...] = ()) -> None:
    """No conflict in shared memory but at the places after the loop; at least 95 % of each sector that is moved used.

    Indices are apart: each of them is a few bytes that all lanes of a warp want.
    """
    assert counters.shared_bytes <= LEAST_SHARED_BYTES
    shared = counters.of("ldmatrix", "copy to shared", "shared load", "shared store")
    assert {access.kind for access in shared} >= {"ldmatrix", "copy to shared"}
    conflicts = {access.site: access.taken - access.least for access in shared if access.taken > access.least}
    assert not [site for site in conflicts if not site.startswith(after_the_loop)], conflicts
    for kind in ("copy from global", "global store"):
        moved = counters.of(kind)
        assert moved
        assert sum(access.least for access in moved) >= 0.95 * sum(access.taken for access in moved), moved


def check_indices(counters: Counters) -> None:
    """They are a small part of what is read, though each warp reads them, and a word takes a sector."""
    indices = sum(access.taken for access in counters.of("global load"))
    assert indices < 0.25 * sum(access.taken for access in counters.of("copy from global"))


@pytest.mark.parametrize("kernel", BLOCK_KERNELS)
def test_many_tokens(emulator: Emulator, kernel: str) -> None:
    block, transposed = BLOCK_KERNELS[kernel]
    packed = pack_random((256, 512), block, 0.4, torch.bfloat16, seed=3)
    x = torch.randn(2 * TOKENS, 256 if transposed else 512).bfloat16()
    emulator.counters()
    emulator.blocks(kernel, packed, x, transposed=transposed)
    counters = emulator.counters()
    check_memory(counters)
    check_indices(counters)
    # 2,048 multiply-adds an instruction, of the kept weights alone.
    kept = packed.values.numel() * len(x)
    assert counters.instructions == {"mma.m16n8k16": kept // 2048}


@pytest.mark.parametrize("kernel", CONV_KERNELS)
def test_convolutions(emulator: Emulator, kernel: str) -> None:
    case = Convolution(CONV_KERNELS[kernel], 256, 64, (3, 3), (8, 16), padding=(1, 1))
    packed = case.packed(torch.bfloat16, 0.6)
    emulator.counters()
    emulator.conv(kernel, packed, case.image(torch.bfloat16), case.numbers)
    counters = emulator.counters()
    check_memory(counters)
    check_indices(counters)
    # Zeros around the image are multiplied, but not those of the weight.
    assert counters.instructions == {"mma.m16n8k16": packed.values.numel() * 2 * 8 * 16 // 2048}


@pytest.mark.parametrize("kernel", ["block_h16", "block_h32"])
def test_low_blocks_share_the_activations(emulator: Emulator, kernel: str) -> None:
    """128 outputs load an input once, whether one of their strips has it or all."""
    block, _ = BLOCK_KERNELS[kernel]
    packed = pack_random((128, 512), block, 0.4, torch.bfloat16, seed=3)
    emulator.counters()
    emulator.blocks(kernel, packed, torch.randn(TOKENS, 512).bfloat16())
    copied = sum(access.bytes for access in emulator.counters().of("copy from global"))
    parts, _ = block_arrays(packed)
    union = len(parts["columns"].unique()) * block.cols
    assert copied == packed.values.numel() * 2 + union * TOKENS * 2


@pytest.mark.parametrize("tokens", [8, 16])
@pytest.mark.parametrize("kernel", DECODE_KERNELS)
def test_few_tokens(emulator: Emulator, kernel: str, tokens: int) -> None:
    packed = pack_random((256, 1024), DECODE_KERNELS[kernel], 0.4, torch.bfloat16, seed=3)
    emulator.counters()
    emulator.blocks(kernel, packed, torch.randn(tokens, 1024).bfloat16())
    counters = emulator.counters()
    check_memory(counters, after_the_loop=("reduce.h",))
    assert counters.instructions == {"mma.m16n8k16": packed.values.numel() * tokens // 2048}
    weights, *_ = sorted(counters.of("copy from global"), key=lambda access: -access.bytes)
    assert weights.bytes == packed.values.numel() * 2  # each of them once


@pytest.mark.parametrize(("kernel", "tokens"), [("nm_2_4", 256), ("nm_2_4_decode", 8), ("nm_2_4_decode", 16)])
def test_two_of_four(emulator: Emulator, kernel: str, tokens: int) -> None:
    packed = pack_random((256, 512), sk.NM(2, 4), 0.5, torch.bfloat16, seed=3)
    emulator.counters()
    emulator.nm(kernel, packed, torch.randn(tokens, 512).bfloat16())
    counters = emulator.counters()
    check_memory(counters, after_the_loop=("reduce.h",))
    # 16 x 32 x 8 multiply-adds of the dense product an instruction, of which half are made.
    assert counters.instructions == {"mma.sp.m16n8k32": 256 * 512 * tokens // 4096}


@pytest.mark.parametrize("kernel", [*DECODE_KERNELS, "nm_2_4_decode"])
def test_few_tokens_in_parts(emulator: Emulator, kernel: str) -> None:
    """Weights are loaded once, and partial sums written and read once, by whole sectors."""
    parts, tokens, outputs = 3, 16, 256
    packed = pack_random((outputs, 1024), DECODE_KERNELS.get(kernel, sk.NM(2, 4)), 0.4, torch.bfloat16, seed=3)
    emulator.counters()
    multiply = emulator.nm if kernel.startswith("nm") else emulator.blocks
    multiply(kernel, packed, torch.randn(tokens, 1024).bfloat16(), parts=parts)
    counters = emulator.counters()
    check_memory(counters, after_the_loop=("reduce.h",))
    weights, *_ = sorted(counters.of("copy from global"), key=lambda access: -access.bytes)
    assert weights.bytes == packed.values.numel() * 2
    (written,) = [access for access in counters.of("global store") if access.site.startswith("reduce.h")]
    read = [access for access in counters.of("global load") if access.site.startswith("add_partials.cu")]
    assert written.bytes == sum(access.bytes for access in read) == 4 * parts * tokens * outputs
    assert {access.taken for access in read} == {access.bytes // 32 for access in read}
    (rows,) = [access for access in counters.of("global store") if access.site.startswith("epilogue.h")]
    assert rows.bytes == 2 * tokens * outputs == rows.instructions * 16 * 16  # of 16 lanes


@pytest.mark.parametrize("side", [16, 32, 64])
def test_gradients_of_values(emulator: Emulator, side: int) -> None:
    packed = pack_random((256, 256), sk.Block(side, side), 0.4, torch.bfloat16, seed=3)
    emulator.counters()
    emulator.grad_values(f"block_grad_values_h{side}", packed, *torch.randn(2, 64, 256).bfloat16())
    counters = emulator.counters()
    check_memory(counters)
    assert counters.instructions == {"mma.m16n8k16": packed.values.numel() * 64 // 2048}


def test_the_counters_count(emulator: Emulator) -> None:
    """Conflicts and wasted sectors would show: a kernel that has both on purpose."""
    emulator.counters()
    emulator.fault("scatters")
    counters = emulator.counters()
    (loads,), (stores,) = counters.of("global load"), counters.of("shared store")
    assert (loads.instructions, loads.bytes, loads.taken, loads.least) == (2, 64, 16, 2)
    assert (stores.instructions, stores.taken, stores.least) == (2, 64, 2)


@pytest.mark.parametrize("blocks", [(1, 7, 3, 5), (2, 2, 2, 2), (0, 0, 8, 1)])
def test_the_heaviest_tiles_come_first(emulator: Emulator, blocks: tuple[int, ...]) -> None:
    """So that the last ones to run are short; those of equal weight keep their order."""
    weight = torch.zeros(128 * len(blocks), 512)
    for tile, count in enumerate(blocks):
        weight[128 * tile : 128 * (tile + 1), : 64 * count] = 1
    y = emulator.blocks("block_h128", sk.pack(weight.bfloat16(), sk.Block(128, 64)), torch.randn(9, 512).bfloat16())
    order = sorted(range(len(blocks)), key=lambda tile: -blocks[tile])
    assert [emulator.writing_block(y, 0, 128 * tile) for tile in order] == [0, 1, 2, 3]
