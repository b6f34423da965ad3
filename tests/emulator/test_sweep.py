"""Random products by whatever kernel the table chooses: a few each time, many with ``make emulate-all``."""

from __future__ import annotations

import os
import random

import pytest
from cases import ACTIVATIONS, DTYPES, Case
from emulator import Emulator
from products import assert_near

import sparsekern as sk

COUNT = int(os.environ.get("SPARSEKERN_EMULATED_CASES", "40"))


def draw(seed: int) -> Case:
    chance = random.Random(seed)
    if chance.random() < 0.3:
        granularity: sk.Granularity = sk.NM(2, 4)
        outputs, inputs = chance.randint(1, 300), chance.randint(4, 400)
    else:
        rows, cols = 16 * chance.choice([1, 1, 2, 3, 4, 6, 8, 16]), 16 * chance.choice([1, 1, 2, 3, 4, 8])
        granularity = sk.Block(rows, cols)
        outputs, inputs = rows + chance.randint(0, 200), cols + chance.randint(0, 300)
    tokens = chance.choice([chance.randint(1, 16), chance.randint(17, 140), chance.randint(141, 300)])
    density = chance.choice([0.0, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0])
    dtype, activation, bias = chance.choice(DTYPES), chance.choice(ACTIVATIONS), chance.random() < 0.5
    return Case(outputs, inputs, tokens, granularity, density, dtype, activation, bias)


@pytest.mark.parametrize("seed", range(COUNT))
def test_any_product(emulator: Emulator, seed: int) -> None:
    case = draw(seed)
    packed, x = case.weight(), case.numbers(case.tokens, case.inputs)
    bias = case.numbers(case.outputs) if case.bias else None
    if isinstance(case.granularity, sk.NM):
        kernel = "nm_2_4_decode" if case.tokens <= 16 else "nm_2_4"
        y = emulator.nm(kernel, packed, x, bias, case.activation)
    else:
        heights = (32, 16) if case.tokens <= 16 else (128, 64, 32, 16)
        height = next(height for height in heights if case.granularity.rows % height == 0)
        kernel = f"block_decode_h{height}" if case.tokens <= 16 else f"block_h{height}"
        y = emulator.blocks(kernel, packed, x, bias, case.activation)
    assert_near(y, x, packed.to_dense(), bias, case.activation)
