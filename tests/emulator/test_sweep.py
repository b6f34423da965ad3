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
    parts = 1 + seed % 5 if case.tokens <= 16 else 1
    packed, x = case.weight(), case.numbers(case.tokens, case.inputs)
    bias = case.numbers(case.outputs) if case.bias else None
    run = emulator.nm if isinstance(case.granularity, sk.NM) else emulator.blocks
    y = run(emulator.chosen(case.granularity, case.tokens), packed, x, bias, case.activation, parts=parts)
    assert_near(y, x, packed.to_dense(), bias, case.activation)


@pytest.mark.parametrize(
    ("granularity", "tokens", "kernel"),
    [
        (sk.Block(128, 16), 17, "block_h128"), (sk.Block(96, 16), 17, "block_h32"), (sk.Block(48, 16), 99, "block_h16"),
        (sk.Block(192, 16), 16, "block_decode_h32"), (sk.Block(48, 16), 1, "block_decode_h16"),
        (sk.NM(2, 4), 16, "nm_2_4_decode"), (sk.NM(2, 4), 17, "nm_2_4"), (sk.Block(8, 16), 5, "none"),
    ],
)  # fmt: skip
def test_what_is_chosen(emulator: Emulator, granularity: sk.Granularity, tokens: int, kernel: str) -> None:
    assert emulator.chosen(granularity, tokens) == kernel
