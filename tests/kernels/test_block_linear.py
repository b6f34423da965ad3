"""Every CPU kernel of the table that runs here, called by its name, against float64.

Tolerances are the a-priori rounding bounds of a dot product, never fitted to what came out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

import sparsekern as sk
from sparsekern import _native
from sparsekern.layouts import Block

if _native.native is None:
    pytest.skip(f"no native kernels: {_native.failure}", allow_module_level=True)

UNIT = 2.0**-24  # unit roundoff of float32
ACTIVATIONS = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
TOKENS = [*range(14), 16, 17, 23, 24, 25, 47, 48, 49, 97, 130]
COLS = [1, 2, 3, 16, 17]


@dataclass(frozen=True)
class Kernel:
    name: str
    rows: int
    multiple: bool

    @property
    def block_rows(self) -> list[int]:
        """Block heights to try: the first few multiples, or the only one that it takes."""
        return [r for r in (16, 32, 48, 64, 96) if r % self.rows == 0][:4] if self.multiple else [self.rows]


def kernels() -> list[Kernel]:
    return [Kernel(r.name, r.rows, r.multiple) for r in sk.kernels() if r.op == "block_linear" and r.runs_here]


KERNELS = kernels()
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
every_block = pytest.mark.parametrize(
    ("kernel", "rows"), [pytest.param(k, r, id=f"{k.name}-{r}") for k in KERNELS for r in k.block_rows]
)


@dataclass
class Weight:
    """A random block matrix: what the op takes, and the same in float64."""

    parts: dict[str, Tensor]
    dense: Tensor
    mask: Tensor

    @classmethod
    def random(cls, shape: tuple[int, int], rows: int, cols: int, density: float) -> Weight:
        block = Block(rows, cols)
        keep = torch.rand(block.grid(shape)) < density
        return cls.of_blocks(shape, rows, cols, keep)

    @classmethod
    def of_blocks(cls, shape: tuple[int, int], rows: int, cols: int, keep: Tensor) -> Weight:
        block = Block(rows, cols)
        mask = block.spread(keep, shape)
        weight = torch.randn(shape) * mask
        return cls(block.pack(weight, mask), weight.double(), mask)

    def __call__(self, x: Tensor, kernel: str, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        return torch.ops.sparsekern.block_linear(
            x,
            self.parts["values"],
            self.parts["columns"],
            self.parts["offsets"],
            bias,
            *self.dense.shape,
            activation,
            kernel,
        )


@dataclass
class Expected:
    """The product in float64, and how far a float32 sum of these terms may be from it, in any order."""

    product: Tensor
    bound: Tensor

    @classmethod
    def of(cls, x: Tensor, weight: Weight) -> Expected:
        terms = weight.mask.sum(1) + 4  # partial sums add a few more roundings than there are terms
        magnitude = x.double().abs() @ weight.dense.abs().T
        return cls(x.double() @ weight.dense.T, magnitude * (terms * UNIT * 1.01) + 1e-37)

    def check(self, y: Tensor, bias: Tensor | None = None, activation: str = "none", what: str = "") -> None:
        tokens = y.shape[0]
        product, bound = self.product[:tokens], self.bound[:tokens]
        if bias is not None:
            product = product + bias.double()
            bound = bound * (1 + UNIT) + bias.double().abs() * 8 * UNIT
        wanted = ACTIVATIONS[activation](product)
        if activation in ("gelu", "silu"):
            bound = 1.13 * bound + 1e-6 * product.abs().clamp(min=1)  # 1.13: the steepest slope of both
        assert y.shape == wanted.shape, what
        error = (y.double() - wanted).abs()
        worst = (error / bound).max() if error.numel() else torch.tensor(0.0)
        assert worst <= 1, f"{what}: error is {float(worst):.3g} times the bound"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


# ---- tiles, chunks, batches ----------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("cols", [1, 2, 3, 16])
@pytest.mark.parametrize("density", [0.02, 0.15, 0.5])
def test_many_tiles_of_inputs(kernel: Kernel, cols: int, density: float) -> None:
    """Densities on both sides of the rule by which rows are packed; tails in each dimension."""
    rows = kernel.rows
    shape = (2 * rows + 3, 4397)
    weight = Weight.random(shape, rows, cols, density)
    x, bias = torch.randn(61, shape[1]), torch.randn(shape[0])
    expected = Expected.of(x, weight)
    for tokens, activation in ((1, "none"), (5, "gelu"), (13, "none"), (16, "relu"), (61, "silu")):
        y = weight(x[:tokens], kernel.name, bias, activation)
        expected.check(y, bias, activation, f"{tokens} tokens")


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
def test_a_packed_tile_for_several_chunks(kernel: Kernel) -> None:
    weight = Weight.random((1700, 2400), kernel.rows, 1, 0.16)
    x, bias = torch.randn(27, 2400), torch.randn(1700)
    Expected.of(x, weight).check(weight(x, kernel.name, bias, "relu"), bias, "relu")


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


# ---- special values ------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("cols", [1, 3])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_reach_what_they_touch_and_nothing_else(kernel: Kernel, cols: int, special: float) -> None:
    shape = (2 * kernel.rows + 1, 37)
    weight = Weight.random(shape, kernel.rows, cols, 0.4)
    for tokens in (1, 4, 6, 16, 26, 49):
        clean = torch.randn(tokens, 37)
        for token in {0, tokens // 2, tokens - 1}:
            for place in (0, 36):
                x = clean.clone()
                x[token, place] = special
                y, without = weight(x, kernel.name), weight(clean, kernel.name)
                others = torch.arange(tokens) != token
                assert torch.equal(y[others], without[others])
                terms = (x[token].double() * weight.dense).masked_fill(~weight.mask, 0).sum(1)
                touched = weight.mask[:, place]
                assert torch.equal(y[token][~touched], without[token][~touched])
                assert torch.equal(y[token][touched].double().nan_to_num(1.5), terms[touched].nan_to_num(1.5))


@every_kernel
def test_nan_passes_through_activations(kernel: Kernel) -> None:
    weight = Weight.random((kernel.rows, 20), kernel.rows, 1, 1.0)
    for tokens in (1, 17):
        x = torch.full((tokens, 20), float("nan"))
        for activation in ACTIVATIONS:
            assert weight(x, kernel.name, activation=activation).isnan().all(), activation


@every_kernel
def test_negative_zeros_and_denormals_are_zeros_and_small_numbers(kernel: Kernel) -> None:
    weight = Weight.random((kernel.rows + 3, 20), kernel.rows, 1, 0.5)
    for activation in ACTIVATIONS:
        for tokens in (2, 19):
            x = torch.full((tokens, 20), -0.0)
            assert (weight(x, kernel.name, None, activation) == 0).all()
            assert (weight(x, kernel.name, torch.full((kernel.rows + 3,), -0.0), activation) == 0).all()
    x = torch.randn(19, 20) * 1e-40
    assert torch.allclose(weight(x, kernel.name).double(), x.double() @ weight.dense.T, rtol=0, atol=1e-43)


# ---- activations ---------------------------------------------------------------------------------


def through_activation(kernel: Kernel, inputs: Tensor, activation: str) -> Tensor:
    """Passes numbers through the epilogue alone: an identity of one block column."""
    keep = torch.ones(1, 1, dtype=torch.bool)
    weight = Weight.of_blocks((kernel.rows, 1), kernel.rows, 1, keep)
    weight.parts["values"].fill_(1.0)
    return weight(inputs[:, None], kernel.name, None, activation)[:, 0]


@every_kernel
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_against_float64(kernel: Kernel, activation: str) -> None:
    exponents = torch.logspace(-37, 38, 1500, dtype=torch.float64).float()
    near = torch.linspace(-20, 20, 200_001)
    far = torch.linspace(-200, 200, 20_001)
    x = torch.cat([near, far, exponents, -exponents, torch.tensor([0.0, 3.4e38, -3.4e38])])
    y, wanted = through_activation(kernel, x, activation).double(), ACTIVATIONS[activation](x.double())
    if activation == "relu":
        assert torch.equal(y, wanted)
        return
    error = (y - wanted).abs() / x.double().abs().clamp(min=1)
    worst = int(error.argmax())
    assert error[worst] < 1e-6, f"{activation}({float(x[worst])}) = {float(y[worst])}, not {float(wanted[worst])}"
    # Where the true value has vanished, ours is nearly nothing too, however large the input.
    vanished = x < -30
    assert y[vanished].abs().max() < 1e-6


@every_kernel
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_of_infinity(kernel: Kernel, activation: str) -> None:
    y = through_activation(kernel, torch.tensor([float("inf"), float("-inf")] * 17), activation)
    assert (y[::2] == float("inf")).all()
    assert y[1::2].abs().max() < 1e-6  # the limit, where F.gelu and F.silu return NaN


# ---- threads -------------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("tokens", [1, 3, 7, 13, 17, 25, 64, 131])
def test_same_bits_on_any_number_of_threads(kernel: Kernel, tokens: int, threads: None) -> None:
    for inputs, density in ((1600, 0.1), (1600, 0.5), (1200, 0.3)):
        shape = (30 * kernel.rows + 5, inputs)
        weight = Weight.random(shape, kernel.rows, 1, density)
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
    inputs = 400_000 // kernel.rows
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
