"""Every CPU kernel of the table that runs here, called by its name, against float64: shapes, strides, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from block_cases import ACTIVATIONS, KERNELS, Expected, Kernel, Weight, every_block, every_kernel
from hypothesis import given, settings, strategies as st

TOKENS = [*range(14), 16, 17, 23, 24, 25, 47, 48, 49, 81, 97, 120, 128, 130]
COLS = [1, 2, 3, 16, 17]


# ---- shapes --------------------------------------------------------------------------------------


@every_block
@pytest.mark.parametrize("cols", COLS)
def test_every_number_of_tokens(kernel: Kernel, rows: int, cols: int) -> None:
    for shape in ((2 * rows, 3 * cols + 40), (2 * rows + rows // 2 + 1, 5 * cols + 1)):
        weight = Weight.random(shape, rows, cols, 0.6)
        x, bias = torch.randn(max(TOKENS), shape[1]), torch.randn(shape[0])
        expected = Expected.of(x, weight)
        for place, tokens in enumerate(TOKENS):
            activation = list(ACTIVATIONS)[place % 4]
            shift = bias if place % 3 else None
            y = weight(x[:tokens], kernel.name, shift, activation)
            expected.check(y, shift, activation, f"{shape}, {tokens} tokens, {activation}")


@every_block
def test_every_tail_of_the_outputs(kernel: Kernel, rows: int) -> None:
    for outputs in range(1, 2 * rows + 2):
        weight = Weight.random((outputs, 21), rows, 2, 0.7)
        x, bias = torch.randn(29, 21), torch.randn(outputs)
        expected = Expected.of(x, weight)
        for tokens, activation in ((1, "none"), (6, "relu"), (29, "silu")):
            expected.check(weight(x[:tokens], kernel.name, bias, activation), bias, activation, f"{outputs} outputs")


@every_block
@pytest.mark.parametrize("cols", COLS)
def test_every_tail_of_the_inputs(kernel: Kernel, rows: int, cols: int) -> None:
    for inputs in range(1, max(2 * cols, 18) + 2):
        weight = Weight.random((rows + 3, inputs), rows, cols, 0.7)
        x = torch.randn(19, inputs)
        expected = Expected.of(x, weight)
        for tokens in (1, 3, 19):
            expected.check(weight(x[:tokens], kernel.name), what=f"{inputs} inputs, {tokens} tokens")


@every_block
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_bias_and_activation(kernel: Kernel, rows: int, activation: str, with_bias: bool) -> None:
    weight = Weight.random((2 * rows + 5, 50), rows, 3, 0.5)
    x = torch.randn(50, 50)
    bias = torch.randn(2 * rows + 5) if with_bias else None
    expected = Expected.of(x, weight)
    for tokens in (1, 7, 50):
        expected.check(weight(x[:tokens], kernel.name, bias, activation), bias, activation, f"{tokens} tokens")
    if with_bias:  # a bias may have any stride
        spread = bias.repeat_interleave(2)[::2]
        assert not spread.is_contiguous()
        assert torch.equal(weight(x, kernel.name, spread, activation), weight(x, kernel.name, bias, activation))


@every_block
def test_empty_and_full(kernel: Kernel, rows: int) -> None:
    shape = (3 * rows, 24)
    x, bias = torch.randn(33, 24), torch.randn(3 * rows)
    some = torch.ones(3, 12, dtype=torch.bool)
    some[1] = False
    first_and_last = torch.zeros(3, 12, dtype=torch.bool)
    first_and_last[0, -1] = first_and_last[2, 0] = True
    for keep in (torch.zeros(3, 12, dtype=torch.bool), torch.ones(3, 12, dtype=torch.bool), some, first_and_last):
        weight = Weight.of_blocks(shape, rows, 2, keep)
        expected = Expected.of(x, weight)
        for tokens in (1, 5, 33):
            for shift in (None, bias):
                y = weight(x[:tokens], kernel.name, shift)
                expected.check(y, shift)
                if not keep[1].any():
                    exact = torch.zeros(rows) if shift is None else shift[rows : 2 * rows]
                    assert torch.equal(y[:, rows : 2 * rows], exact.expand(tokens, rows))


@every_block
@pytest.mark.parametrize("cols", [1, 3])
def test_streams_of_one_token(kernel: Kernel, rows: int, cols: int) -> None:
    """Block rows that end together, far apart, or not at all, where one token is read in several streams."""
    shape = (23 * rows - 3, 25 * cols - (cols > 1))
    columns = torch.arange(25)
    patterns = {
        "equal": torch.ones(23, 25, dtype=torch.bool),
        "every other row empty": (torch.arange(23)[:, None] % 2 == 0).expand(23, 25),
        "empty at both ends": ((torch.arange(23) > 5) & (torch.arange(23) < 9))[:, None].expand(23, 25),
        "growing": columns <= torch.arange(23)[:, None],
        "a single block": (torch.arange(23)[:, None] == 7) & (columns == 24),
    }
    for what, keep in patterns.items():
        weight = Weight.of_blocks(shape, rows, cols, keep)
        x, bias = torch.randn(2, shape[1]), torch.randn(shape[0])
        expected = Expected.of(x, weight)
        for tokens, shift in ((1, None), (1, bias), (2, bias)):
            expected.check(weight(x[:tokens], kernel.name, shift), shift, what=what)


# ---- how x lies in memory ------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("cols", [1, 3])
def test_strides(kernel: Kernel, cols: int) -> None:
    inputs = 96
    weight = Weight.random((2 * kernel.rows, inputs), kernel.rows, cols, 0.5)
    base = torch.randn(26, 1100)
    views = {
        "row stride above K": base[:, 3 : 3 + inputs],
        "rows 4096 bytes apart": torch.randn(26, 1024)[:, :inputs],
        "rows 8192 bytes apart": torch.randn(26, 2048)[:, 5 : 5 + inputs],
        "every other row": base[::2, :inputs],
        "transposed": torch.randn(inputs, 26).T,
        "every other input": base[:, : 2 * inputs : 2],
        "expanded over tokens": torch.randn(1, inputs).expand(26, inputs),
        "expanded over inputs": torch.randn(26, 1).expand(26, inputs),
        "one token": base[7:8, 2 : 2 + inputs],
        "one token of a transpose": torch.randn(inputs, 26).T[3:4],
        "one dimension": base[5, 1 : 1 + inputs],
        "one strided dimension": base[5, : 2 * inputs : 2],
        "three dimensions, one row stride": torch.randn(2, 13, 200)[..., 7 : 7 + inputs],
        "three dimensions, two row strides": torch.randn(2, 14, 200)[:, 1:, :inputs],
        "first tokens": torch.randn(26, 3, inputs)[:, 0],
        "dimensions swapped": torch.randn(13, 2, inputs).transpose(0, 1),
    }
    for name, x in views.items():
        y = weight(x, kernel.name)
        assert y.is_contiguous(), name
        rows = x.reshape(-1, inputs)
        Expected.of(rows, weight).check(y.reshape(rows.shape[0], -1), what=name)


@every_kernel
def test_rows_that_touch_the_end_of_a_page_apart(kernel: Kernel) -> None:
    """Rows 4096 bytes apart are copied; the last one must not be read beyond its end."""
    weight = Weight.random((kernel.rows, 1000), kernel.rows, 1, 0.1)
    x = torch.as_strided(torch.randn(24 * 1024 + 1000), (25, 1000), (1024, 1))
    Expected.of(x, weight).check(weight(x, kernel.name))


@every_kernel
def test_leading_dimensions(kernel: Kernel) -> None:
    weight = Weight.random((kernel.rows + 2, 33), kernel.rows, 1, 0.5)
    x = torch.randn(3, 2, 4, 33)
    for view in (x, x[0], x[:, :, 1:3], x.transpose(0, 2), x.expand(3, 2, 4, 33)[:, :1].expand(3, 5, 4, 33)):
        y = weight(view, kernel.name)
        assert y.shape == (*view.shape[:-1], kernel.rows + 2)
        rows = view.reshape(-1, 33)
        Expected.of(rows, weight).check(y.reshape(-1, kernel.rows + 2))
    for empty in (torch.randn(0, 33), torch.randn(2, 0, 3, 33)):
        assert weight(empty, kernel.name).shape == (*empty.shape[:-1], kernel.rows + 2)


# ---- threads -------------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("tokens", [1, 3, 7, 13, 17, 25, 64, 131])
def test_same_bits_on_any_number_of_threads(kernel: Kernel, tokens: int, threads: None) -> None:
    for inputs, density, rows in ((1600, 0.1, 1), (1600, 0.5, 1), (1200, 0.3, 3)):
        rows = rows if kernel.rows == 1 else kernel.rows  # noqa: PLW2901
        shape = (max(30 * rows, 900) + 5, inputs)  # work for several threads, even for one token
        weight = Weight.random(shape, rows, 1, density)
        x, bias = torch.randn(tokens, shape[1]), torch.randn(shape[0])
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(weight(x, kernel.name, bias, "gelu"))
        Expected.of(x, weight).check(results[0], bias, "gelu")
        for other in results[1:]:
            assert torch.equal(results[0], other)


@every_kernel
def test_all_blocks_in_one_row_on_many_threads(kernel: Kernel, threads: None) -> None:
    """Shares cut by blocks: most of the threads get no row at all, and there is work for all of them."""
    inputs = 400_000 // kernel.rows // 8 * 8
    keep = torch.zeros(9, inputs // 8, dtype=torch.bool)
    keep[4] = True
    weight = Weight.of_blocks((9 * kernel.rows, inputs), kernel.rows, 8, keep)
    x = torch.randn(40, inputs)
    expected = Expected.of(x, weight)
    torch.set_num_threads(7)
    for tokens in (1, 5, 40):
        expected.check(weight(x[:tokens], kernel.name))


@every_kernel
def test_two_python_threads_share_a_layer(kernel: Kernel) -> None:
    weight = Weight.random((8 * kernel.rows, 700), kernel.rows, 1, 0.4)
    inputs = [torch.randn(tokens, 700) for tokens in (40, 51)]
    wanted = [weight(x, kernel.name) for x in inputs]
    start = threading.Barrier(2)
    same = [False, False]

    def work(which: int) -> None:
        start.wait()
        same[which] = all(torch.equal(weight(inputs[which], kernel.name), wanted[which]) for _ in range(30))

    workers = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert same == [True, True]


# ---- anything ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape_block_density_and_stride(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from(KERNELS))
    rows = data.draw(st.sampled_from(kernel.block_rows))
    cols = data.draw(st.integers(1, 20))
    shape = (data.draw(st.integers(1, 3 * rows)), data.draw(st.integers(1, 70) | st.integers(600, 1100)))
    tokens = data.draw(st.integers(0, 60))
    density = data.draw(st.sampled_from([0.0, 0.05, 0.15, 0.2, 0.5, 1.0]))
    activation = data.draw(st.sampled_from(list(ACTIVATIONS)))
    stride = shape[1] + data.draw(st.integers(0, 20)) if data.draw(st.booleans()) else -(-shape[1] // 1024) * 1024
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    weight = Weight.random(shape, rows, cols, density)
    x = torch.as_strided(torch.randn(max(1, tokens) * stride), (tokens, shape[1]), (stride, 1))
    bias = torch.randn(shape[0]) if data.draw(st.booleans()) else None
    Expected.of(x, weight).check(weight(x, kernel.name, bias, activation), bias, activation)
