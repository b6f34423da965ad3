"""The CUDA kernels of convolutions, thread by thread, against float64."""

import random

import pytest
import torch
from convolutions import CONVOLUTIONS, Convolution, assert_convolved, draw
from emulator import Emulator

from sparsekern.ops_conv import CONV_ACTIVATIONS

# The last of the heights are those of blocks that the kernel takes in several strips.
HEIGHTS = {
    "block_conv_h128": (128, 128, 256),
    "block_conv_h64": (64, 64, 192),
    "block_conv_h32": (32, 32, 96),
    "block_conv_h16": (16, 16, 48),
}
DTYPES = (torch.bfloat16, torch.float16)
MORE = [
    Convolution((16, 64), 40, 48, (3, 3), (6, 6), padding=(1, 1)),  # blocks over several taps, the last beyond them
    Convolution((16, 32), 24, 48, (1, 1), (5, 4), stride=(2, 1)),  # half of the last block
    Convolution((64, 32), 64, 64, (3, 3), (16, 17), padding=(1, 1)),  # long enough to fill each stage again and again
    Convolution((128, 16), 256, 32, (5, 5), (12, 12), padding=(2, 2), batch=1),
]

CASES = [
    (kernel, case)
    for kernel, (height, *_) in HEIGHTS.items()
    for case in CONVOLUTIONS + MORE
    if case.groups == 1 and case.block[0] % height == 0
]


def check(emulator: Emulator, kernel: str, case: Convolution, seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    dtype, activation = chance.choice(DTYPES), chance.choice(CONV_ACTIVATIONS)
    packed, x = case.packed(dtype, chance.choice([0.0, 0.3, 0.7, 0.95])), case.image(dtype)
    bias = torch.randn(case.outputs).to(dtype) if chance.random() < 0.5 else None
    y = emulator.conv(kernel, packed, x, case.numbers, bias, activation)
    assert_convolved(case, y, x, packed, bias, activation, unit=0.51)


@pytest.mark.parametrize(("kernel", "case"), CASES, ids=str)
def test_convolutions(emulator: Emulator, kernel: str, case: Convolution) -> None:
    check(emulator, kernel, case, 1)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kernel", HEIGHTS)
def test_any_convolution(emulator: Emulator, kernel: str, seed: int) -> None:
    check(emulator, kernel, draw(seed, HEIGHTS[kernel], groups=(1,)), seed)


def test_nan_stays_nan(emulator: Emulator) -> None:
    case = Convolution((16, 16), 16, 16, (1, 1), (3, 3), batch=1)
    packed, x = case.packed(torch.bfloat16, 0.0), case.image(torch.bfloat16)
    x[0, 5, 2, 0] = float("nan")
    for activation in ("relu", "relu6", "hardswish"):
        y = emulator.conv("block_conv_h16", packed, x, case.numbers, None, activation)
        assert y[0, :, 2, 0].isnan().all() and int(y.isnan().sum()) == 16


def test_divisions(emulator: Emulator) -> None:
    chance = random.Random(0)
    divisors = [1, 2, 3, 5, 7, 16, 48, 65535, 65536, 65537, 2**31 - 1, *(chance.randint(1, 2**20) for _ in range(200))]
    for divisor in divisors:
        edges = [k * divisor + d for k in (1, 2, 2**31 // divisor) for d in (-1, 0, 1)]
        for number in (0, 1, 2**31 - 1, *edges, *(chance.randrange(2**31) for _ in range(20))):
            if 0 <= number < 2**31:
                assert emulator.quotient(number, divisor) == number // divisor, (number, divisor)
