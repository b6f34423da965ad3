"""Products of few tokens whose strips several thread blocks share: sums, their order, and how many parts are chosen."""

import pytest
import torch
from cases import FEW, Case, block_cases, long_cases, nm_cases
from emulator import Emulator
from products import assert_added_in_order, assert_near, pack_random
from torch import Tensor

import sparsekern as sk

H100 = (132, 3350.0)
"""SMs, and bytes a nanosecond."""

HEIGHTS = {"block_decode_h32": (32, 96), "block_decode_h16": (16, 48)}
CASES = [
    (kernel, case)
    for kernel, heights in HEIGHTS.items()
    for case in [*block_cases(heights, FEW), *long_cases(sk.Block(heights[0], 32), FEW)]
]
CASES += [("nm_2_4_decode", case) for case in nm_cases(FEW * 2)]
CASES += [("nm_2_4_decode", Case(40, 1000 + 100 * i, i, sk.NM(2, 4), 0.5, torch.float16)) for i in (1, 8, 9, 16)]


def run(emulator: Emulator, kernel: str, packed: sk.PackedWeight, x: Tensor, *end: object, parts: int) -> Tensor:
    multiply = emulator.nm if isinstance(packed.granularity, sk.NM) else emulator.blocks
    return multiply(kernel, packed, x, *end, parts=parts)


@pytest.mark.parametrize(("number", "kernel", "case"), [(i, *one) for i, one in enumerate(CASES)], ids=str)
def test_products(emulator: Emulator, number: int, kernel: str, case: Case) -> None:
    packed, x = case.weight(), case.numbers(case.tokens, case.inputs)
    bias = case.numbers(case.outputs) if case.bias else None
    y = run(emulator, kernel, packed, x, bias, case.activation, parts=(2, 3, 4, 5, 9)[number % 5])
    assert_near(y, x, packed.to_dense(), bias, case.activation)


@pytest.mark.parametrize("kernel", [*HEIGHTS, "nm_2_4_decode"])
def test_at_least_forty_cases_a_kernel(kernel: str) -> None:
    cases = {case for name, case in CASES if name == kernel}
    assert len(cases) >= 40
    assert len({(case.dtype, case.activation, case.bias) for case in cases}) >= 12


def example(kernel: str, inputs: int = 2048, density: float = 0.5) -> tuple[sk.PackedWeight, Tensor]:
    granularity = sk.NM(2, 4) if kernel.startswith("nm") else sk.Block(HEIGHTS[kernel][0], 32)
    packed = pack_random((57, inputs), granularity, density, torch.bfloat16, seed=7)
    return packed, torch.randn(11, inputs, generator=torch.Generator().manual_seed(8)).bfloat16()


@pytest.mark.parametrize("kernel", [*HEIGHTS, "nm_2_4_decode"])
def test_same_bits_in_whatever_order_thread_blocks_run(emulator: Emulator, kernel: str) -> None:
    packed, x = example(kernel)
    forwards = run(emulator, kernel, packed, x, parts=5)
    with emulator.backwards():
        backwards = run(emulator, kernel, packed, x, parts=5)
    assert torch.equal(forwards, backwards)


@pytest.mark.parametrize("kernel", [*HEIGHTS, "nm_2_4_decode"])
def test_parts_are_added_in_their_order(emulator: Emulator, kernel: str) -> None:
    packed, x = example(kernel)
    y = run(emulator, kernel, packed, x, parts=3)
    partials = emulator.partials[:, :, : packed.shape[0]]
    assert torch.equal(y, ((partials[0] + partials[1]) + partials[2]).bfloat16())
    multiply = emulator.nm if isinstance(packed.granularity, sk.NM) else emulator.blocks
    assert_added_in_order(multiply, kernel, packed.granularity)


@pytest.mark.parametrize("kernel", [*HEIGHTS, "nm_2_4_decode"])
def test_parts_are_even(emulator: Emulator, kernel: str) -> None:
    """Within a slice for each of 8 warps."""
    packed, x = example(kernel, density=1.0)
    packed = sk.pack(torch.ones(packed.shape).bfloat16(), packed.granularity, packed.to_dense() != 0)
    run(emulator, kernel, packed, torch.ones_like(x), parts=3)
    kept = emulator.partials[:, :, : packed.shape[0]]
    assert kept.sum(0).unique().tolist() == [(packed.to_dense()[0] != 0).sum()]
    assert float(kept.max() - kept.min()) <= 8 * 16  # kept numbers of a slice, of 2:4 as well


def test_parts_without_slices_leave_zeros(emulator: Emulator) -> None:
    """An empty block row, and one whose slices the first part takes alone."""
    weight = torch.zeros(64, 512)
    weight[32:, 64:128] = 1
    packed = sk.pack(weight.bfloat16(), sk.Block(32, 32))
    x = torch.randn(3, 512).bfloat16()
    y = emulator.blocks("block_decode_h32", packed, x, parts=4)
    assert_near(y, x, weight)
    assert not emulator.partials[:, :, :32].any() and not emulator.partials[1:].any()
    assert emulator.partials[0, :, 32:].all()
    empty = sk.pack(torch.zeros(64, 512).bfloat16(), sk.Block(32, 32))
    bias = torch.randn(64).bfloat16()
    assert torch.equal(emulator.blocks("block_decode_h32", empty, x, bias, parts=4), bias.expand(3, -1))


def test_what_costs_more_than_it_brings_is_not_cut(emulator: Emulator) -> None:
    slices, h32, of_nm = 512, 1024, 1152
    assert emulator.parts(32, slices, h32, 1024, 1, *H100) > 1
    assert emulator.parts(128, slices, h32, 4096, 1, *H100) == 1  # as many strips as keep the memory busy
    assert emulator.parts(512, slices, h32, 16384, 1, *H100) == 1
    assert emulator.parts(32, 63, h32, 1024, 1, *H100) == 1  # warps would not fill their pipelines
    assert emulator.parts(32, 0, h32, 1024, 1, *H100) == 1
    assert emulator.parts(0, 0, h32, 0, 1, *H100) == 1
    assert emulator.parts(32, 512, of_nm, 1024, 1, *H100) > 1  # 2:4 of 16,384 inputs
    assert emulator.parts(128, slices, h32, 4096, 1, 148, 8000.0) > 1  # a faster memory needs more under way


@pytest.mark.parametrize("slice_bytes", [512, 1024, 1152])
@pytest.mark.parametrize("strips", [1, 2, 3, 8, 30, 32, 64, 100, 132, 200])
@pytest.mark.parametrize("slices", [1, 64, 100, 256, 1000, 4096])
def test_all_thread_blocks_run_at_once(emulator: Emulator, strips: int, slices: int, slice_bytes: int) -> None:
    parts = emulator.parts(strips, slices, slice_bytes, 32 * strips, 16, *H100)
    # A thread block has 24 slices under way; an SM of sm_80 on takes twice 48 KiB.
    assert parts == 1 or parts * strips * 24 * slice_bytes <= H100[0] * 54 * 1024
    assert parts == 1 or slices >= 32 * parts  # each warp fills its pipeline of four stages
