"""The kernels of a few tokens: rows of single weights, picks by shuffles, bfloat16 read as it lies in memory."""

from __future__ import annotations

import pytest
import torch
from block_cases import ACTIVATIONS, Expected, Kernel, Weight, kernels
from torch import Tensor

import sparsekern as sk

FEW = [r.name for r in sk.kernels() if r.runs_here and r.name.startswith("few_")]
few_r1 = pytest.mark.parametrize("kernel", [name for name in FEW if "_r1_" in name])
few_nm = pytest.mark.parametrize("kernel", [name for name in FEW if "_nm_" in name])
BLOCKS = [k for k in kernels("bfloat16") if k.name.startswith(("dots", "outputs", "vector"))]
of_blocks = pytest.mark.parametrize("kernel", BLOCKS, ids=lambda k: k.name)
of_one_token = pytest.mark.parametrize("kernel", [k for k in BLOCKS if "vector" in k.name], ids=lambda k: k.name)
of_tall_blocks = pytest.mark.parametrize("kernel", [k for k in BLOCKS if k.multiple], ids=lambda k: k.name)
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


def narrowed(weight: Weight) -> Weight:
    """The same in bfloat16."""
    values = weight.parts["values"].bfloat16()
    block = sk.Block(values.shape[-1], values.shape[1])
    dense = block.unpack({**weight.parts, "values": values.double()}, tuple(weight.dense.shape))
    return Weight({**weight.parts, "values": values}, dense, weight.mask)


@of_blocks
@pytest.mark.parametrize("cols", [1, 2, 3, 40])
def test_bfloat16_of_blocks(kernel: Kernel, cols: int, threads: None) -> None:
    """Every number of tokens; strips side by side in tall blocks, more of them than are taken together."""
    for factor in (1, 2, 11) if kernel.multiple else (1,):
        rows = factor * kernel.rows
        weight = narrowed(Weight.random((3 * rows + kernel.rows // 2, 611), rows, cols, 0.4))
        x, bias = torch.randn(17, 611).bfloat16(), torch.randn(weight.dense.shape[0]).bfloat16()
        for tokens in TOKENS:
            activation = list(ACTIVATIONS)[tokens % 4]
            product = x[:tokens].double() @ weight.dense.T + bias.double()
            bound = (x[:tokens].double().abs() @ weight.dense.abs().T + bias.double().abs()) * 620 * 2.0**-24
            wanted = ACTIVATIONS[activation](product)
            results = []
            for count in (1, 3):
                torch.set_num_threads(count)
                results.append(weight(x[:tokens], kernel.name, bias, activation))
            assert torch.equal(*results), f"{rows} rows, {tokens} tokens"
            difference = (results[0].double() - wanted).abs()
            assert (difference <= 1.2 * bound + 2.0**-8 * wanted.abs()).all(), f"{rows} rows, {tokens} tokens"


@of_blocks
def test_more_bfloat16_outputs_than_sums_are_kept(kernel: Kernel, threads: None) -> None:
    """And work for several threads."""
    weight = narrowed(Weight.random((4500 + kernel.rows // 2, 200), kernel.rows, 1, 0.9))
    for tokens in (2, 5, 8, 16):
        x = torch.randn(tokens, 200).bfloat16()
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(weight(x, kernel.name))
        assert torch.equal(*results), f"{tokens} tokens"
        expected = x.double() @ weight.dense.T
        torch.testing.assert_close(results[0].double(), expected, rtol=2.0**-7, atol=1e-4)


@of_one_token
def test_one_token_of_bfloat16_is_the_float32_result_rounded(kernel: Kernel) -> None:
    weight = narrowed(Weight.random((10 * kernel.rows, 1100), kernel.rows, 1, 0.5))
    wide = Weight({**weight.parts, "values": weight.parts["values"].float()}, weight.dense, weight.mask)
    x, bias = torch.randn(1, 1100).bfloat16(), torch.randn(10 * kernel.rows).bfloat16()
    expected = wide(x.float(), kernel.name, bias.float(), "silu").bfloat16()
    assert torch.equal(weight(x, kernel.name, bias, "silu"), expected)


@of_tall_blocks
def test_blocks_taller_than_the_sums_that_are_kept(kernel: Kernel) -> None:
    rows = 4112 if kernel.rows <= 16 else 4128
    weight = narrowed(Weight.random((rows + 21, 30), rows, 1, 0.7))
    for tokens in (1, 2, 8):
        x = torch.randn(tokens, 30).bfloat16()
        torch.testing.assert_close(
            weight(x, kernel.name).double(), x.double() @ weight.dense.T, rtol=2.0**-7, atol=1e-5
        )


@of_blocks
def test_a_weight_that_is_not_finite_reaches_its_output_alone(kernel: Kernel) -> None:
    """The last step of a block row has fewer inputs than a vector: its neighbours are another row's."""
    weight = narrowed(Weight.of_blocks((4 * kernel.rows, 90), kernel.rows, 1, torch.eye(4, 90, dtype=torch.bool)))
    weight.parts["values"][2, 0, 1] = float("nan")
    for tokens in (1, 3, 7, 12, 16):
        y = weight(torch.randn(tokens, 90).bfloat16(), kernel.name)
        wrong = y.isnan().nonzero()[:, 1].unique()
        assert wrong.tolist() == [2 * kernel.rows + 1], f"{tokens} tokens"
