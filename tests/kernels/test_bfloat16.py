"""bfloat16 on every kernel: sums in float32, rounded once, whatever the shares, batches and chunks."""

import pytest
import torch
from block_cases import ACTIVATIONS, KERNELS, Kernel, Weight, kernels
from torch import Tensor

import sparsekern as sk
from sparsekern import _native

HALF_UNIT = 2.0**-8  # unit roundoff of bfloat16
FLOAT_UNIT = 2.0**-24
every_kernel = pytest.mark.parametrize("kernel", kernels("bfloat16"), ids=lambda k: k.name)
NM_KERNELS = [r.name for r in sk.kernels() if r.op == "nm_linear" and r.runs_here]
every_nm_kernel = pytest.mark.parametrize("kernel", NM_KERNELS)


def random_bfloat16(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def check(y: Tensor, x: Tensor, dense: Tensor, bias: Tensor | None = None, activation: str = "none") -> None:
    """``y`` is the float64 product within the rounding of a float32 sum and of one bfloat16."""
    x, dense = x.double(), dense.double()
    product = x @ dense.T
    sum_bound = (x.abs() @ dense.abs().T) * ((dense != 0).sum(1) + 4) * FLOAT_UNIT * 1.01
    if bias is not None:
        product = product + bias.double()
        sum_bound = sum_bound + product.abs() * FLOAT_UNIT
    wanted = ACTIVATIONS[activation](product)
    bound = 1.13 * sum_bound + 1e-6 * (activation in ("gelu", "silu")) * product.abs().clamp(min=1)
    bound = bound + wanted.abs() * HALF_UNIT * 1.01 + 1e-37
    assert y.dtype == torch.bfloat16
    assert ((y.double() - wanted).abs() <= bound).all()


def block_weight(shape: tuple[int, int], rows: int, cols: int, density: float) -> Weight:
    weight = Weight.random(shape, rows, cols, density)
    weight.parts["values"] = weight.parts["values"].bfloat16()
    weight.dense = weight.dense.bfloat16().double()
    return weight


@every_kernel
@pytest.mark.parametrize(("cols", "density"), [(1, 0.4), (2, 0.4), (3, 0.4), (1, 0.1), (2, 0.1), (40, 0.4)])
def test_blocks(kernel: Kernel, cols: int, density: float) -> None:
    """Tails of outputs, inputs and tokens; rows of x that lie apart; bias and activation.

    Tiles gather inputs at low densities, and leave out empty windows of wide blocks.
    """
    for rows in kernel.block_rows:
        weight = block_weight((3 * rows + max(1, rows // 2), 203), rows, cols, density)
        bias = random_bfloat16(weight.dense.shape[0])
        for tokens in (1, 2, 5, 16, 40, 129):
            x = random_bfloat16(tokens, 240)[:, :203]
            check(weight(x, kernel.name), x, weight.dense)
        check(weight(x, kernel.name, bias, "gelu"), x, weight.dense, bias, "gelu")


@every_nm_kernel
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (8, 16), (3, 7), (5, 32)], ids=str)
def test_nm(kernel: str, pattern: tuple[int, int]) -> None:
    granularity = sk.NM(*pattern)
    weight = random_bfloat16(41, 203)
    packed = sk.pack(weight, granularity, sk.make_mask(weight, granularity))
    values, positions = packed.tensors
    for tokens in (1, 2, 11, 16, 70, 129):
        x = random_bfloat16(tokens, 203)
        y = torch.ops.sparsekern.nm_linear(x, values, positions, None, *pattern, 41, 203, "none", kernel)
        check(y, x, packed.to_dense())


@every_kernel
def test_batches_and_chunks(kernel: Kernel, threads: None) -> None:
    """More tokens than a batch and more weights than a chunk, and the same bits on any number of threads."""
    rows = kernel.block_rows[0]
    shape = (1000 // rows * rows + max(1, rows // 2), 700)
    many, few = (block_weight(shape, rows, 1, density) for density in (0.9, 0.1))
    empty_rows = block_weight((40 * rows, 30), rows, 1, 0.01)
    for tokens in (1, 30, 258):
        x = random_bfloat16(tokens, 700)
        for weight in (many, few):
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(weight(x, kernel.name))
            check(results[0], x, weight.dense)
            assert all(torch.equal(results[0], other) for other in results[1:])
        check(empty_rows(x[:, :30], kernel.name), x[:, :30], empty_rows.dense)


@every_kernel
@pytest.mark.parametrize("density", [0.9, 0.4])
def test_chunks_end_within_a_block_row(kernel: Kernel, density: float) -> None:
    """Of as many outputs as take several chunks, at a height that is no power of two."""
    rows = kernel.block_rows[2] if kernel.multiple else kernel.rows
    weight = block_weight((1440, 700), rows, 1, density)
    x = random_bfloat16(5, 700)
    check(weight(x, kernel.name), x, weight.dense)


@every_kernel
@pytest.mark.parametrize("density", [0.9, 0.1])
def test_what_is_not_finite_stays_in_its_token(kernel: Kernel, density: float) -> None:
    """And reaches every output of it that has a weight for it; tiles may let it reach others."""
    weight = block_weight((70, 203), kernel.block_rows[0], 1, density)
    for tokens in (2, 40):
        x = random_bfloat16(tokens, 203)
        expected = weight(x, kernel.name)
        x[1, 5], x[1, 6] = float("nan"), float("inf")
        y = weight(x, kernel.name)
        others = torch.arange(tokens) != 1
        assert torch.equal(y[others], expected[others])
        assert not y[1][(weight.dense[:, [5, 6]] != 0).any(1)].isfinite().any()


@every_nm_kernel
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (8, 16), (3, 7)], ids=str)
def test_nm_batches_and_chunks(kernel: str, pattern: tuple[int, int], threads: None) -> None:
    weight = random_bfloat16(140, 1300)
    packed = sk.pack(weight, sk.NM(*pattern), sk.make_mask(weight, sk.NM(*pattern)))
    x = random_bfloat16(300, 1300)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(torch.ops.sparsekern.nm_linear(x, *packed.tensors, None, *pattern, 140, 1300, "none", kernel))
    check(results[0], x, packed.to_dense())
    assert all(torch.equal(results[0], other) for other in results[1:])


@every_kernel
def test_is_the_float32_result_rounded(kernel: Kernel) -> None:
    """Also where that is not a number, infinite, denormal, or half way between two bfloat16 numbers.

    To the dot products of pairs and tiles a denormal number is zero.
    """
    rows = kernel.block_rows[0]
    weight = block_weight((2 * rows, 64), rows, 1, 1.0)
    weight.parts["values"] = torch.zeros_like(weight.parts["values"])
    weight.parts["values"][:, :, 0] = 1.0  # the sum of the inputs
    tiny = 0.0 if kernel.name.startswith(("dots", "pairs", "tiles")) else 1e-40
    special = [float("nan"), float("inf"), -float("inf"), 3.4e38, -0.0, tiny, 1.0 + 2.0**-7, 1.0]
    x = torch.zeros(len(special) + 2, 64)
    x[: len(special), 5] = torch.tensor(special)
    x[-2:, 0], x[-2:, 1] = 1.0, torch.tensor([2.0**-8, 3 * 2.0**-8])  # ties: to even, down and up
    x = x.bfloat16()
    wide = Weight({**weight.parts, "values": weight.parts["values"].float()}, weight.dense, weight.mask)
    got, expected = weight(x, kernel.name), wide(x.float(), "").bfloat16()
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_kernels_name_both_dtypes_and_mixed_ones_are_refused() -> None:
    products = [r for r in sk.kernels() if r.backend == "cpu" and r.op.endswith("_linear")]
    assert len(products) > len(KERNELS) and all("bfloat16" in r.dtypes for r in products)
    weight = block_weight((32, 20), 16, 1, 0.5)
    with pytest.raises(RuntimeError, match="expected an input of bfloat16 on the CPU, like the values, got Float"):
        weight(torch.randn(3, 20), _native.native.choose("block", 16, 3))
    with pytest.raises(RuntimeError, match=r"expected a bfloat16 bias \[32\], got Float"):
        weight(random_bfloat16(3, 20), "", torch.zeros(32))
    with pytest.raises(RuntimeError, match="float32 or bfloat16 values"):
        Weight({**weight.parts, "values": weight.parts["values"].half()}, weight.dense, weight.mask)(
            torch.randn(3, 20).half(), ""
        )
