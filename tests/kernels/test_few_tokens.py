"""The kernels of a few tokens: rows of single weights, picks by shuffles, bfloat16 read as it lies in memory."""

from __future__ import annotations

import pytest
import torch
from block_cases import ACTIVATIONS, Expected, Weight
from torch import Tensor

import sparsekern as sk

FEW = [r.name for r in sk.kernels() if r.runs_here and r.name.startswith("few_")]
few_r1 = pytest.mark.parametrize("kernel", [name for name in FEW if "_r1_" in name])
few_nm = pytest.mark.parametrize("kernel", [name for name in FEW if "_nm_" in name])
TOKENS = range(1, 18)


def uneven(shape: tuple[int, int]) -> Weight:
    """Rows of all lengths side by side, none and full ones among them."""
    density = torch.linspace(0, 1, shape[0])[torch.randperm(shape[0])]
    return Weight.of_blocks(shape, 1, 1, torch.rand(shape) < density[:, None])


@few_r1
@pytest.mark.parametrize("outputs", [1, 3, 4, 7, 50])
def test_rows_of_all_lengths(kernel: str, outputs: int) -> None:
    weight = uneven((outputs, 150))
    x, bias = torch.randn(17, 150), torch.randn(outputs)
    expected = Expected.of(x, weight)
    for tokens in TOKENS:
        activation = list(ACTIVATIONS)[tokens % 4]
        shift = bias if tokens % 3 else None
        expected.check(weight(x[:tokens], kernel, shift, activation), shift, activation, f"{tokens} tokens")


@few_r1
def test_a_row_is_summed_up_alike_beside_any_others(kernel: str, threads: None) -> None:
    weight = uneven((700, 900))
    x = torch.randn(17, 900)
    for tokens in TOKENS:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(weight(x[:tokens], kernel))
        assert all(torch.equal(results[0], y) for y in results[1:]), f"{tokens} tokens"


@few_r1
def test_more_rows_than_a_chunk_has(kernel: str) -> None:
    weight = uneven((9000, 20))
    x = torch.randn(16, 20)
    expected = Expected.of(x, weight)
    for tokens in (1, 3, 8, 16):
        expected.check(weight(x[:tokens], kernel), what=f"{tokens} tokens")


@few_r1
def test_what_is_not_stored_meets_no_input(kernel: str) -> None:
    weight = Weight.of_blocks((5, 40), 1, 1, torch.eye(5, 40, dtype=torch.bool))
    x = torch.full((9, 40), float("nan"))
    x[:, :5] = torch.randn(9, 5)
    for tokens in (1, 2, 9):
        assert torch.equal(weight(x[:tokens], kernel), x[:tokens, :5] * weight.dense.diag().float())


def nm_linear(x: Tensor, parts: tuple[Tensor, Tensor], bias: Tensor, granularity: sk.NM, kernel: str) -> Tensor:
    return torch.ops.sparsekern.nm_linear(
        x, *parts, bias, granularity.n, granularity.m, len(bias), x.shape[1], "gelu", kernel
    )


@few_nm
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (8, 16)], ids=str)
def test_bfloat16_of_nm_is_the_float32_result_rounded(kernel: str, pattern: tuple[int, int], threads: None) -> None:
    granularity = sk.NM(*pattern)
    weight = torch.randn(333, 1100).bfloat16()
    values, positions = sk.pack(weight, granularity, sk.make_mask(weight, granularity)).tensors
    x, bias = torch.randn(8, 1100).bfloat16(), torch.randn(333).bfloat16()
    for tokens in range(1, 9):
        wide = nm_linear(x[:tokens].float(), (values.float(), positions), bias.float(), granularity, kernel)
        for count in (1, 3):
            torch.set_num_threads(count)
            y = nm_linear(x[:tokens], (values, positions), bias, granularity, kernel)
            assert torch.equal(y, wide.bfloat16()), f"{tokens} tokens, {count} threads"


@few_r1
def test_bfloat16_of_rows_is_the_float32_result_rounded(kernel: str, threads: None) -> None:
    weight = uneven((333, 1100))
    narrow = Weight({**weight.parts, "values": weight.parts["values"].bfloat16()}, weight.dense, weight.mask)
    wide = Weight({**weight.parts, "values": narrow.parts["values"].float()}, weight.dense, weight.mask)
    x, bias = torch.randn(8, 1100).bfloat16(), torch.randn(333).bfloat16()
    for tokens in range(1, 9):
        expected = wide(x[:tokens].float(), kernel, bias.float(), "silu").bfloat16()
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(narrow(x[:tokens], kernel, bias, "silu"), expected), f"{tokens} tokens, {count} threads"
