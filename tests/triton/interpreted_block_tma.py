"""The block kernel for TMA under Triton's interpreter; run by test_interpreted.py, with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from interpreter import check, guard_output  # noqa: F401
from torch import Tensor

import sparsekern as sk
from sparsekern.backends.triton import ops, tiles
from sparsekern.ops import ACTIVATIONS

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = [
    # rows, cols, outputs, inputs, tokens
    (64, 64, 64, 64, 128),  # one tile
    (64, 64, 208, 200, 130),  # every tail
    (64, 256, 128, 300, 65),  # four steps a block
    (128, 64, 144, 72, 70),
    (128, 128, 256, 391, 129),  # rows that are copied, for they begin anywhere
]


@pytest.fixture(autouse=True)
def on_hopper(guard_output: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: F811
    """As on an sm_90, and nothing but the kernel for TMA is launched."""
    monkeypatch.setattr(ops, "_capability", lambda device: 90)
    launch: Callable[[Any], Any] = ops.wrap_triton
    seen = []

    def only_tma(kernel: Any) -> Any:
        seen.append(kernel)
        return launch(kernel)

    monkeypatch.setattr(ops, "wrap_triton", only_tma)
    yield
    assert set(seen) == {ops.block_linear_tma_kernel}


def packed_weight(
    rows: int, cols: int, outputs: int, inputs: int, dtype: torch.dtype = FP16, sparsity: float = 0.5
) -> sk.PackedWeight:
    weight, granularity = torch.randn(outputs, inputs).to(dtype), sk.Block(rows, cols)
    return sk.pack(weight, granularity, sk.make_mask(weight, granularity, sparsity))


def linear(x: Tensor, packed: sk.PackedWeight, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    return torch.ops.sparsekern.triton_block_linear(x, *packed.tensors, bias, *packed.shape, activation)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "MULTIPROCESSORS", 1 if wide else 10**6)
    rows, cols, outputs, inputs, tokens = shape
    packed = packed_weight(rows, cols, outputs, inputs, dtype)
    x, bias = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs).to(dtype)
    check(linear(x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_activations(activation: str, with_bias: bool) -> None:
    packed, x = packed_weight(64, 64, 80, 100), 3 * torch.randn(70, 100).to(FP16)
    bias = torch.randn(80).to(FP16) if with_bias else None
    check(linear(x, packed, bias, activation), x, packed, bias, activation)


@pytest.mark.parametrize("kept", [[], [1], [0, 2]], ids=str)
def test_rows_without_blocks_give_the_bias(kept: list[int]) -> None:
    mask = torch.zeros(3, 64, 4, 64, dtype=torch.bool)
    mask[kept, :, 1:3] = True
    mask = mask.view(192, 256)
    packed = sk.pack(torch.randn(192, 256).to(FP16), sk.Block(64, 64), mask)
    x, bias = torch.randn(70, 256).to(FP16), torch.randn(192).to(FP16)
    y = linear(x, packed, bias)
    check(y, x, packed, bias)
    empty = [row for row in range(3) if row not in kept]
    assert torch.equal(y.view(70, 3, 64)[:, empty], bias.view(3, 64)[empty].expand(70, -1, -1))


@pytest.mark.parametrize("dtype", [FP16, BF16], ids=str)
@pytest.mark.parametrize("inputs", [96, 90])
def test_nothing_beyond_the_tensors_is_used(inputs: int, dtype: torch.dtype) -> None:
    packed = packed_weight(64, 64, 80, inputs, dtype, sparsity=0)
    x = torch.full((80, 160), float("nan"), dtype=dtype)[3:73, 16 : 16 + inputs]
    x.copy_(torch.randn(70, inputs))
    buffers = {name: torch.full((part.numel() + 8192,), 77, dtype=part.dtype) for name, part in packed.parts.items()}
    buffers["values"].fill_(float("nan"))
    parts = [buffers[name][: part.numel()].view(part.shape).copy_(part) for name, part in packed.parts.items()]
    check(torch.ops.sparsekern.triton_block_linear(x, *parts, None, 80, inputs, "none"), x, packed)


def test_infinite_inputs_of_dropped_blocks_do_not_matter() -> None:
    mask = torch.zeros(64, 256, dtype=torch.bool)
    mask[:, 128:192] = True
    packed = sk.pack(torch.randn(64, 256).to(FP16), sk.Block(64, 64), mask)
    x = torch.randn(65, 256).to(FP16)
    x[:, :128] = float("inf")
    assert linear(x, packed).isfinite().all()


def test_strides_and_leading_dimensions() -> None:
    packed = packed_weight(64, 64, 80, 96)
    bias = torch.randn(80, 2).to(FP16)[:, 1]
    numbers = torch.randn(20_000).to(FP16)
    columns, every_other = numbers[: 96 * 70].view(96, 70).T, numbers[: 70 * 192].view(70, 192)[:, ::2]
    for x in (columns, every_other, numbers[:96].expand(70, 96), numbers[1 : 1 + 70 * 96].view(2, 35, 96)):
        check(linear(x, packed, bias), x, packed, bias)


def test_every_block_row_and_tile_of_tokens_has_its_program() -> None:
    # More block rows than the swizzle takes together, and no multiple of it; three tiles of tokens.
    packed, x = packed_weight(64, 64, 64 * 11, 64), torch.randn(257, 64).to(FP16)
    check(linear(x, packed), x, packed)


def test_gradients() -> None:
    packed = packed_weight(64, 64, 80, 100)
    values = packed.values.requires_grad_()
    x = torch.randn(2, 35, 100).to(FP16).requires_grad_()
    y = linear(x, packed, None, "silu")
    expected = torch.nn.functional.silu(x.double() @ packed.to_dense().double().T)
    direction = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, values), direction)
    theirs = torch.autograd.grad(expected, (x, values), direction.double())
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=2e-1)
