"""The CPU kernels of the gradients, called by their names, against float64: shapes, tails, strides, threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from block_cases import UNIT
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import Granularity
from sparsekern.plan import KernelRecord

KERNELS = [r for r in sk.kernels() if "_grad_" in r.op and r.runs_here]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
TOKENS = [0, 1, 2, 7, 8, 15, 16, 17, 33, 47, 48, 49, 95, 97, 130, 193, 255, 256, 257, 300, 520]


@dataclass
class Weight:
    """A random packed matrix: what the ops take, and the same in float64."""

    granularity: Granularity
    parts: dict[str, Tensor]
    dense: Tensor
    mask: Tensor

    @classmethod
    def random(cls, granularity: Granularity, shape: tuple[int, int], density: float = 0.4) -> Weight:
        dense = torch.randn(shape)
        if isinstance(granularity, sk.Block):
            mask = granularity.spread(torch.rand(granularity.grid(shape)) < density, shape)
        else:
            mask = granularity.mask(dense.abs(), None)
        return cls(granularity, sk.pack(dense, granularity, mask).parts, (dense * mask).double(), mask)

    def run(self, kernel: KernelRecord, *rows: Tensor) -> Tensor:
        g = self.granularity
        numbers = (g.n, g.m) if isinstance(g, sk.NM) else ()
        op = getattr(torch.ops.sparsekern, kernel.op)
        return op(*rows, *self.parts.values(), *numbers, *self.dense.shape, kernel.name)


def granularities(kernel: KernelRecord) -> list[Granularity]:
    """Some that the kernel takes."""
    if kernel.granularity == "nm":
        return [sk.NM(n, m) for n, m in ((2, 4), (1, 4), (4, 8), (8, 16), (3, 5), (2, 17), (31, 32))]
    heights = {1: (1, 2, 3, 7, 12), 4: (4, 12, 20, 36), 8: (8, 16, 24, 64)}[kernel.rows]
    return [sk.Block(rows, cols) for rows in heights for cols in (1, 2, 5, 16)]


def check(kernel: KernelRecord, weight: Weight, grad: Tensor, x: Tensor, what: Any = "") -> Tensor:
    """Run a kernel; the bounds are those of a float32 sum in any order, never fitted to what came out."""
    rows, inputs = grad.reshape(-1, grad.shape[-1]).double(), x.reshape(-1, x.shape[-1]).double()
    if kernel.op.endswith("grad_input"):
        got = weight.run(kernel, grad)
        assert got.shape == x.shape, what
        wanted, size = rows @ weight.dense, rows.abs() @ weight.dense.abs()
        terms = weight.mask.sum(0) + 4
        error = (got.reshape(wanted.shape).double() - wanted).abs()
        worst = error / (size * (terms * UNIT * 1.01) + 1e-37)
    else:
        got = weight.run(kernel, grad, x)
        assert got.shape == weight.parts["values"].shape, what
        gather, parts = weight.granularity.gather, weight.parts
        wanted, size = gather(rows.T @ inputs, parts), gather(rows.abs().T @ inputs.abs(), parts)
        worst = (got.double() - wanted).abs() / (size * ((len(rows) + 4) * UNIT * 1.01) + 1e-37)
        assert not got[size == 0].any(), f"{what}: a gradient in the padding"
    assert got.is_contiguous()
    assert worst.numel() == 0 or worst.max() <= 1, f"{what}: error is {float(worst.max()):.3g} times the bound"
    return got


def operands(weight: Weight, tokens: int) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.dense.shape
    return torch.randn(tokens, outputs), torch.randn(tokens, inputs)


def test_the_table_has_both_gradients_on_every_level_that_runs_here(isa: str) -> None:
    level = "avx512" if isa.endswith("_bf16") else isa  # whose kernels of float32 are those of the level below
    ops = {k.op for k in KERNELS if k.isa == level}
    assert ops == {f"{of}_linear_grad_{to}" for of in ("block", "nm") for to in ("input", "values")}


@every_kernel
def test_every_number_of_tokens(kernel: KernelRecord) -> None:
    for granularity in granularities(kernel)[:6]:
        weight = Weight.random(granularity, (71, 83))
        grad, x = operands(weight, max(TOKENS))
        for tokens in TOKENS:
            check(kernel, weight, grad[:tokens], x[:tokens], f"{granularity.label}, {tokens} tokens")


@every_kernel
def test_every_tail(kernel: KernelRecord) -> None:
    for granularity in granularities(kernel):
        height = getattr(granularity, "rows", 1)
        width = granularity.m if isinstance(granularity, sk.NM) else granularity.cols
        for i in range(1, 20):
            shape = (height + 3 * i % (2 * height + 17), width + 5 * i % (3 * width + 11))
            weight = Weight.random(granularity, shape, 0.7)
            check(kernel, weight, *operands(weight, 1 + 7 * i % 40), f"{granularity.label}, {shape}")


@every_kernel
def test_several_tiles_and_chunks(kernel: KernelRecord) -> None:
    """More inputs than a K-tile has, more outputs than are kept at a time, in both orders of the sides."""
    for granularity in granularities(kernel)[-3::2]:
        for shape in ((200, 2600), (2600, 200), (4300, 1100)):
            weight = Weight.random(granularity, shape, 0.05)
            check(kernel, weight, *operands(weight, 270 if shape[0] < 4000 else 20), f"{granularity.label}, {shape}")


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.granularity == "block"], ids=lambda k: k.name)
def test_empty_and_full(kernel: KernelRecord) -> None:
    block = granularities(kernel)[1]
    for density in (0.0, 1.0):
        weight = Weight.random(block, (50, 41), density)
        check(kernel, weight, *operands(weight, 37), f"density {density}")


@every_kernel
def test_strides_and_leading_dimensions(kernel: KernelRecord) -> None:
    weight = Weight.random(granularities(kernel)[0], (48, 40))
    outputs, inputs = weight.dense.shape
    grads = {
        "expanded from one number": torch.randn(()).expand(6, outputs),
        "expanded over tokens": torch.randn(1, outputs).expand(6, outputs),
        "transposed": torch.randn(outputs, 6).T,
        "row stride above its length": torch.randn(6, 2 * outputs)[:, 3 : 3 + outputs],
        "every other row": torch.randn(12, outputs)[::2],
        "three dimensions": torch.randn(2, 3, outputs),
        "dimensions swapped": torch.randn(3, 2, outputs).transpose(0, 1),
        "one dimension": torch.randn(outputs),
    }
    for name, grad in grads.items():
        leading = grad.shape[:-1]
        for x in (torch.randn(*leading, inputs), torch.randn(inputs, *leading).movedim(0, -1)):
            check(kernel, weight, grad, x, name)


@every_kernel
def test_rows_4_kib_apart(kernel: KernelRecord) -> None:
    weight = Weight.random(granularities(kernel)[0], (64, 40))
    grad, x = torch.randn(300, 1024)[:, :64], torch.randn(300, 2048)[:, :40]
    check(kernel, weight, grad, x)


@every_kernel
@pytest.mark.parametrize("tokens", [3, 17, 50, 131, 530])
def test_same_bits_on_any_number_of_threads(kernel: KernelRecord, tokens: int, threads: None) -> None:
    for granularity, shape in zip(granularities(kernel)[:4:3], ((900, 700), (300, 2100)), strict=True):
        weight = Weight.random(granularity, shape, 0.4)
        grad, x = operands(weight, tokens)
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(check(kernel, weight, grad, x))
        for other in results[1:]:
            assert torch.equal(results[0], other)


@every_kernel
def test_infinite_numbers_stay_out_of_the_padding(kernel: KernelRecord) -> None:
    for granularity in granularities(kernel):
        weight = Weight.random(granularity, (69, 43), 0.9)
        grad, x = operands(weight, 5)
        inside = weight.granularity.gather(torch.ones(69, 43), weight.parts) != 0
        grad[2, 68] = x[4, 42] = x[0, 0] = float("inf")
        got = weight.run(kernel, grad) if kernel.op.endswith("input") else weight.run(kernel, grad, x)
        if kernel.op.endswith("values"):
            assert not got[~inside].any()
        else:
            assert got[[0, 1, 3, 4]].isfinite().all()


def test_one_row_of_gradients_for_each_of_the_input() -> None:
    weight = Weight.random(sk.Block(8, 1), (16, 12))
    op = torch.ops.sparsekern.block_linear_grad_values
    with pytest.raises(RuntimeError, match="expected as many rows in the gradient as in the input, got 3 and 4"):
        op(torch.randn(3, 16), torch.randn(4, 12), *weight.parts.values(), 16, 12, "")


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.randn(3, 15), r"expected a gradient \[..., 16\], got Float \[3, 15\]"),
        (
            torch.randn(3, 16).double(),
            r"expected a gradient of float32 on the CPU, like the values, got Double \[3, 16\]",
        ),
    ],
)
def test_a_gradient_that_does_not_fit(grad: Tensor, message: str) -> None:
    weight = Weight.random(sk.Block(8, 1), (16, 12))
    with pytest.raises(RuntimeError, match=f"block_linear_grad_input: {message}"):
        torch.ops.sparsekern.block_linear_grad_input(grad, *weight.parts.values(), 16, 12, "")


@pytest.mark.parametrize("granularity", [sk.Block(8, 1), sk.NM(2, 4)], ids=lambda g: g.label)
@pytest.mark.parametrize("grad", ["input", "values"])
def test_other_values_than_float32_are_refused(granularity: Granularity, grad: str) -> None:
    weight = Weight.random(granularity, (16, 12))
    weight.parts["values"] = weight.parts["values"].bfloat16()
    kernel = next(k for k in sk.kernels() if k.op.endswith(f"_grad_{grad}") and k.granularity == granularity.kind)
    rows = [torch.randn(3, 16), torch.randn(3, 12)][: 1 if grad == "input" else 2]
    with pytest.raises(RuntimeError, match=f"_grad_{grad}: expected contiguous float32 values"):
        weight.run(kernel, *rows)


@pytest.mark.parametrize("name", ["grad_values_r4_portable", "grad_input_nm_portable", "nothing"])
def test_a_kernel_that_does_not_fit(name: str) -> None:
    weight = Weight.random(sk.Block(8, 1), (16, 12))
    with pytest.raises(RuntimeError, match=f"kernel .*'{name}'.* python -m sparsekern kernels lists them"):
        torch.ops.sparsekern.block_linear_grad_input(torch.randn(3, 16), *weight.parts.values(), 16, 12, name)
