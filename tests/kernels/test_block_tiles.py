"""Every CPU kernel where the work is cut: tiles of inputs, chunks of block rows, batches of tokens."""

from __future__ import annotations

import pytest
import torch
from block_cases import KERNELS, Expected, Kernel, Weight, every_kernel


@every_kernel
@pytest.mark.parametrize("cols", [1, 2, 3, 16])
@pytest.mark.parametrize("density", [0.02, 0.15, 0.5])
def test_many_tiles_of_inputs(kernel: Kernel, cols: int, density: float) -> None:
    """Tails in each dimension, at densities that leave a tile few blocks and many."""
    rows = kernel.rows
    shape = (2 * rows + 3, 4397)
    weight = Weight.random(shape, rows, cols, density)
    x, bias = torch.randn(61, shape[1]), torch.randn(shape[0])
    expected = Expected.of(x, weight)
    for tokens, activation in ((1, "none"), (5, "gelu"), (13, "none"), (16, "relu"), (61, "silu")):
        y = weight(x[:tokens], kernel.name, bias, activation)
        expected.check(y, bias, activation, f"{tokens} tokens")


@every_kernel
@pytest.mark.parametrize(
    ("inputs", "cols", "density"),
    [(4400, 16, 0.3), (4400, 16, 0.5), (5000, 5, 0.6), (6144, 2, 0.25), (13000, 3, 0.3)],
    ids=["few blocks", "most blocks", "blocks that no tile's limit divides", "pairs", "many tiles"],
)
def test_long_rows(kernel: Kernel, inputs: int, cols: int, density: float, threads: None) -> None:
    """Inputs for several tiles, as whole blocks; the same bits however it is cut."""
    weight = Weight.random((2 * kernel.rows + 3, inputs), kernel.rows, cols, density)
    x = torch.randn(61, inputs)
    expected = Expected.of(x, weight)
    for tokens in (1, 7, 13, 61):
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(weight(x[:tokens], kernel.name))
        expected.check(results[0], what=f"{tokens} tokens")
        assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.multiple], ids=lambda k: k.name)
@pytest.mark.parametrize("cols", [1, 3])
def test_tall_blocks_of_long_rows(kernel: Kernel, cols: int) -> None:
    """Several strips a block, in several tiles of inputs."""
    rows = 3 * kernel.rows
    for density in (0.1, 0.5):
        weight = Weight.random((2 * rows - min(7, rows - 1), 4397), rows, cols, density)
        x, bias = torch.randn(13, 4397), torch.randn(len(weight.dense))
        expected = Expected.of(x, weight)
        for tokens in (1, 5, 13):
            expected.check(weight(x[:tokens], kernel.name, bias, "relu"), bias, "relu")


@every_kernel
@pytest.mark.parametrize("cols", [1, 2, 5, 12, 13, 40])
def test_fewer_blocks_than_are_fetched_ahead(kernel: Kernel, cols: int) -> None:
    """Kernels look for the columns of blocks to come, which at the end of the matrix are not there."""
    for blocks in (0, 1, 2, 3, 11, 12, 13):
        keep = torch.zeros(3, 14, dtype=torch.bool)
        keep[2, :blocks] = True
        weight = Weight.of_blocks((3 * kernel.rows, 14 * cols), kernel.rows, cols, keep)
        x = torch.randn(26, 14 * cols)
        Expected.of(x, weight).check(weight(x, kernel.name), what=f"{blocks} blocks")


@every_kernel
def test_tiles_without_a_single_block(kernel: Kernel) -> None:
    keep = torch.zeros(3, 5000, dtype=torch.bool)
    keep[0, 4999] = keep[1, 0] = keep[2, 2500] = True
    weight = Weight.of_blocks((3 * kernel.rows, 5000), kernel.rows, 1, keep)
    x = torch.randn(50, 5000)
    Expected.of(x, weight).check(weight(x, kernel.name))


@every_kernel
def test_many_chunks_of_block_rows(kernel: Kernel) -> None:
    """More weights than a chunk holds, and more block rows than one may have."""
    heavy = Weight.random((12 * kernel.rows, 4096), kernel.rows, 4, 0.9)
    x = torch.randn(27, 4096)
    Expected.of(x, heavy).check(weight_out := heavy(x, kernel.name))
    assert weight_out.shape == (27, 12 * kernel.rows)
    long = Weight.random((4100 * kernel.rows - 1, 5), kernel.rows, 1, 0.3)
    x = torch.randn(3, 5)
    Expected.of(x, long).check(long(x, kernel.name, activation="relu"), activation="relu")


@every_kernel
@pytest.mark.parametrize(
    "cols", [1, 3], ids=["rows copied because they do not stay in L1", "rows padded to whole blocks"]
)
def test_several_batches_of_tokens(kernel: Kernel, cols: int) -> None:
    """More packed activations than a thread's scratch may hold at once."""
    shape = (kernel.rows + 1, 1601)
    weight = Weight.random(shape, kernel.rows, cols, 0.03 if cols == 1 else 0.4)
    x, bias = torch.randn(3201, shape[1]), torch.randn(shape[0])
    Expected.of(x, weight).check(weight(x, kernel.name, bias, "relu"), bias, "relu")


@every_kernel
@pytest.mark.parametrize(
    ("inputs", "density", "tokens", "activation"),
    [(2400, 0.16, 27, "relu"), (3072, 0.3, 50, "silu")],
    ids=["a packed tile for several chunks", "chunks that end within a cache line of outputs"],
)
def test_several_chunks(kernel: Kernel, inputs: int, density: float, tokens: int, activation: str) -> None:
    weight = Weight.random((1700, inputs), kernel.rows, 1, density)
    x, bias = torch.randn(tokens, inputs), torch.randn(1700)
    Expected.of(x, weight).check(weight(x, kernel.name, bias, activation), bias, activation)


@every_kernel
def test_a_block_larger_than_a_chunk(kernel: Kernel) -> None:
    cols = 68000 // kernel.rows
    for inputs in (cols, cols + 1000):
        weight = Weight.random((kernel.rows + 1, inputs), kernel.rows, cols, 1.0)
        x = torch.randn(20, inputs)
        expected = Expected.of(x, weight)
        for tokens in (1, 20):
            expected.check(weight(x[:tokens], kernel.name))


@every_kernel
def test_rows_a_multiple_of_4_kib_apart(kernel: Kernel) -> None:
    for density in (0.03, 0.4):
        weight = Weight.random((kernel.rows + 1, 8192), kernel.rows, 1, density)
        x = torch.randn(61, 8192)
        Expected.of(x, weight).check(weight(x, kernel.name))


@every_kernel
def test_the_last_column_that_16_bits_can_name(kernel: Kernel) -> None:
    keep = torch.rand(1, 65536) < 0.001
    keep[0, 32767] = keep[0, 32768] = keep[0, 65535] = True
    weight = Weight.of_blocks((kernel.rows, 65536), kernel.rows, 1, keep)
    x = torch.randn(18, 65536)
    expected = Expected.of(x, weight)
    for tokens in (1, 18):
        expected.check(weight(x[:tokens], kernel.name))
