"""The CUDA kernels of products, thread by thread, against float64."""

import pytest
from cases import FEW, MANY, Case, block_cases, long_cases, nm_cases
from emulator import Emulator
from products import assert_near

import sparsekern as sk

# The last of the heights are those of blocks that the kernel takes in several strips.
HEIGHTS = {
    "block_h128": (128, 256),
    "block_h64": (64, 192),
    "block_h32": (32, 96, 160),
    "block_h16": (16, 48, 112),
    "block_decode_h32": (32, 64, 96),
    "block_decode_h16": (16, 48, 80),
}

BLOCKS = [
    (kernel, case)
    for kernel, heights in HEIGHTS.items()
    for case in block_cases(heights, FEW if "decode" in kernel else MANY + MANY[:6])
]
BLOCKS += [
    (kernel, case)
    for kernel, heights in HEIGHTS.items()
    for case in long_cases(sk.Block(heights[0], 32), (3, 16) if "decode" in kernel else (50, 129))
]
TWO_OF_FOUR = [
    (kernel, case) for kernel, tokens in (("nm_2_4", MANY * 3), ("nm_2_4_decode", FEW * 3)) for case in nm_cases(tokens)
]


def check(emulator: Emulator, kernel: str, case: Case) -> None:
    packed = case.weight()
    x = case.numbers(case.tokens, case.inputs)
    bias = case.numbers(case.outputs) if case.bias else None
    run = emulator.nm if isinstance(case.granularity, sk.NM) else emulator.blocks
    y = run(kernel, packed, x, bias, case.activation)
    assert_near(y, x, packed.to_dense(), bias, case.activation)


@pytest.mark.parametrize(("kernel", "case"), BLOCKS, ids=str)
def test_blocks(emulator: Emulator, kernel: str, case: Case) -> None:
    check(emulator, kernel, case)


@pytest.mark.parametrize(("kernel", "case"), TWO_OF_FOUR, ids=str)
def test_two_of_four(emulator: Emulator, kernel: str, case: Case) -> None:
    check(emulator, kernel, case)


@pytest.mark.parametrize("kernel", [*HEIGHTS, "nm_2_4", "nm_2_4_decode"])
def test_at_least_forty_cases_a_kernel(kernel: str) -> None:
    cases = {case for name, case in BLOCKS + TWO_OF_FOUR if name == kernel}
    assert len(cases) >= 40
    assert {case.dtype for case in cases} == {case.dtype for case in cases if case.bias}
    assert len({case.activation for case in cases}) == 4
