"""The CPU kernels of n:m, called by their names, against float64: patterns, shapes, strides, threads."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from block_cases import ACTIVATIONS, Expected
from hypothesis import given, settings, strategies as st
from torch import Tensor

import sparsekern as sk

KERNELS = [r.name for r in sk.kernels() if r.op == "nm_linear" and r.runs_here and "float32" in r.dtypes]
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
PICKED = [(2, 4), (1, 4), (4, 8), (8, 16)]
"""Patterns whose few tokens vectors of weights serve, on some instruction sets."""
PATTERNS = [*PICKED, (1, 2), (3, 4), (2, 8), (5, 7), (3, 16), (1, 17), (31, 32)]
every_pattern = pytest.mark.parametrize(("n", "m"), PATTERNS)


class Weight(SimpleNamespace):
    """A random n:m matrix: what the op takes, and the same in float64."""

    @classmethod
    def random(cls, shape: tuple[int, int], n: int, m: int) -> Weight:
        dense = torch.randn(shape)
        mask = sk.NM(n, m).mask(dense.abs(), None)
        parts = sk.pack(dense, sk.NM(n, m), mask).parts
        return cls(n=n, m=m, parts=parts, mask=mask, dense=(dense * mask).double())

    def __call__(self, x: Tensor, kernel: str, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        return torch.ops.sparsekern.nm_linear(
            x,
            self.parts["values"],
            self.parts["positions"],
            bias,
            self.n,
            self.m,
            *self.dense.shape,
            activation,
            kernel,
        )


def test_the_table_has_kernels_of_every_level_that_runs_here() -> None:
    assert KERNELS


@every_kernel
@every_pattern
def test_every_number_of_tokens(kernel: str, n: int, m: int) -> None:
    weight = Weight.random((35, 9 * m + m // 2 + 1), n, m)
    x, bias = torch.randn(200, weight.dense.shape[1]), torch.randn(35)
    expected = Expected.of(x, weight)
    for place, tokens in enumerate([*range(22), 23, 24, 25, 48, 63, 64, 65, 95, 96, 97, 120, 128, 130, 197]):
        activation = list(ACTIVATIONS)[place % 4]
        shift = bias if place % 3 else None
        y = weight(x[:tokens], kernel, shift, activation)
        expected.check(y, shift, activation, f"{tokens} tokens, {activation}")


@every_kernel
@pytest.mark.parametrize(("n", "m"), [*PICKED, (3, 5)])
def test_every_tail(kernel: str, n: int, m: int) -> None:
    for outputs in range(1, 36):
        inputs = m + 3 * outputs % (17 * m)
        weight = Weight.random((outputs, inputs), n, m)
        x, bias = torch.randn(70, inputs), torch.randn(outputs)
        expected = Expected.of(x, weight)
        for tokens in (1, 6, 9, 15, 70):
            expected.check(weight(x[:tokens], kernel, bias), bias, what=f"[{outputs}, {inputs}], {tokens} tokens")


@every_kernel
@pytest.mark.parametrize(("n", "m"), [(2, 4), (8, 16), (2, 32)])
def test_several_tiles_and_chunks(kernel: str, n: int, m: int) -> None:
    weight = Weight.random((700, 1100), n, m)
    x, bias = torch.randn(130, 1100), torch.randn(700)
    expected = Expected.of(x, weight)
    for tokens in (1, 20, 64, 130):
        expected.check(weight(x[:tokens], kernel, bias, "relu"), bias, "relu", f"{tokens} tokens")


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name in ("few_nm_avx512", "few_nm_avx2")])
@pytest.mark.parametrize(("n", "m"), PICKED)
def test_a_few_tokens_are_summed_up_like_one(kernel: str, n: int, m: int) -> None:
    weight = Weight.random((50, 1100), n, m)
    x = torch.randn(8, 1100)
    alone = torch.cat([weight(row, kernel) for row in x.split(1)])
    for tokens in range(2, 9):
        assert torch.equal(weight(x[:tokens], kernel), alone[:tokens]), f"{tokens} tokens"


@every_kernel
def test_a_group_that_keeps_fewer_than_n(kernel: str) -> None:
    dense = torch.randn(20, 40)
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[3, 7] = mask[19, 38:] = True
    weight = Weight(n=2, m=4, parts=sk.pack(dense, sk.NM(2, 4), mask).parts, mask=mask, dense=(dense * mask).double())
    x = torch.randn(65, 40)
    Expected.of(x, weight).check(weight(x, kernel))


@every_kernel
def test_strides(kernel: str) -> None:
    weight = Weight.random((24, 64), 2, 4)
    base = torch.randn(90, 200)
    for x in (
        base[:, :64],
        base[::3, 5:69],
        base.T[:64].T.contiguous()[:, :64],
        base[:, ::3][:, :64],
        base[:1, 64:128],
    ):
        expected = Expected.of(x, weight)
        for tokens in (1, 3, 11, len(x)):
            expected.check(weight(x[:tokens], kernel), what=f"strides {x.stride()}, {tokens} tokens")
    leading = base[:, :64].reshape(5, 9, 2, 64)
    assert torch.equal(weight(leading, kernel), weight(leading.reshape(-1, 64), kernel).reshape(5, 9, 2, 24))


@every_kernel
@pytest.mark.parametrize(("n", "m"), [*PICKED, (3, 5)])
def test_any_number_of_threads_gives_the_same_bits(kernel: str, n: int, m: int, threads: None) -> None:
    weight = Weight.random((900, 1280), n, m)  # work for seven threads, even for one token
    x, bias = torch.randn(410, 1280), torch.randn(900)
    for tokens in (1, 2, 7, 13, 16, 20, 64, 97, 200, 410):
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(weight(x[:tokens], kernel, bias, "gelu"))
        assert all(torch.equal(results[0], y) for y in results[1:]), f"{tokens} tokens"


@every_kernel
def test_more_inputs_than_16_bits_count(kernel: str) -> None:
    weight = Weight.random((5, 66_000), 2, 4)
    x = torch.randn(3, 66_000)
    Expected.of(x, weight).check(weight(x, kernel))


def test_two_callers_at_once() -> None:
    weight, x = Weight.random((130, 260), 2, 4), torch.randn(80, 260)
    expected = weight(x, "")
    found: list[bool] = []

    def call() -> None:
        found.extend(torch.equal(weight(x, ""), expected) for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 60


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_pattern_and_shape(data: st.DataObject) -> None:
    m = data.draw(st.integers(2, 32))
    n = data.draw(st.integers(1, m - 1))
    shape = (data.draw(st.integers(1, 50)), data.draw(st.integers(m, 300)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    weight = Weight.random(shape, n, m)
    x = torch.randn(data.draw(st.integers(0, 130)), shape[1])
    Expected.of(x, weight).check(weight(x, data.draw(st.sampled_from(["", *KERNELS]))))


# ---- arguments that must be refused: an exception with a message, never a crash --------------------


def arguments() -> dict[str, object]:
    weight = Weight.random((20, 40), 2, 4)
    return {"x": torch.randn(5, 40), **weight.parts, "bias": torch.randn(20), "n": 2, "m": 4,
            "out_features": 20, "in_features": 40, "activation": "none", "kernel": ""}  # fmt: skip


def misaligned_rows(t: Tensor) -> Tensor:
    return torch.cat([t, t], -1)[..., : t.shape[-1]]


MISTAKES = [
    ("x", lambda a: a["x"].double(), "an input of float32"),
    ("x", lambda a: a["x"][:, :-1], r"an input \[\.\.\., 40\]"),
    ("values", lambda a: a["values"].double(), "float32 or bfloat16 values"),
    ("values", lambda a: misaligned_rows(a["values"]), "contiguous float32 values"),
    ("values", lambda a: a["values"][:-1], r"values \[2, 2, 32, 8\]"),
    ("values", lambda a: a["values"][:, :0], r"values \[2, 2, 32, 8\]"),
    ("values", lambda a: a["values"].flatten(), r"values \[2, 2, 32, 8\]"),
    ("positions", lambda a: a["positions"].int(), "uint8 positions"),
    ("positions", lambda a: a["positions"][..., :-1].contiguous(), r"positions \[2, 2, 8, 2, 4\]"),
    ("positions", lambda a: a["positions"].flatten(), r"positions \[2, 2, 8, 2, 4\]"),
    ("positions", lambda a: misaligned_rows(a["positions"]), "not contiguous"),
    ("n", lambda a: 3, r"values \[2, 2, 32, 12\]"),
    ("n", lambda a: 0, "1 <= n < m <= 32"),
    ("n", lambda a: 4, "1 <= n < m <= 32"),
    ("m", lambda a: 33, "1 <= n < m <= 32"),
    ("m", lambda a: 2**62, "1 <= n < m <= 32"),
    ("out_features", lambda a: 0, "sizes > 0"),
    ("out_features", lambda a: 2**62, "sizes > 0"),
    ("in_features", lambda a: 400, r"values \[2, 13, 32, 8\]"),
    ("in_features", lambda a: -40, "sizes > 0"),
    ("bias", lambda a: a["bias"].double(), r"bias \[20\]"),
    ("bias", lambda a: a["bias"][:-1], r"bias \[20\]"),
    ("activation", lambda a: "tanh", "'tanh'"),
    ("kernel", lambda a: "outputs_r16_portable", "does not take n:m"),
    ("kernel", lambda a: "none_such", "named 'none_such'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), MISTAKES)
def test_mistakes(name: str, change: object, message: str) -> None:
    kwargs = arguments()
    kwargs[name] = change(kwargs)  # type: ignore[operator]
    with torch.inference_mode(), pytest.raises(RuntimeError, match=message) as caught:  # past the autograd wrapper
        torch.ops.sparsekern.nm_linear(**kwargs)
    assert "sparsekern::nm_linear: " in str(caught.value)
