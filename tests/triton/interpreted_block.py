"""The block kernel under Triton's interpreter; run by test_interpreted.py, in a process with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import pytest
import torch
from interpreter import check, guard_output  # noqa: F401
from torch import Tensor

import sparsekern as sk
from sparsekern.backends.triton import tiles
from sparsekern.layouts.compressed import decode_columns
from sparsekern.ops import ACTIVATIONS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    # rows, cols, outputs, inputs, tokens
    (16, 16, 40, 70, 3),  # every tail; four blocks a step, or two
    (16, 32, 16, 128, 16),  # none
    (32, 16, 100, 33, 19),
    (32, 128, 64, 300, 40),  # two steps a block
    (64, 32, 130, 96, 65),
    (64, 64, 128, 192, 128),
    (128, 16, 129, 257, 17),
    (128, 256, 300, 256, 130),
]


def packed_weight(
    rows: int, cols: int, outputs: int, inputs: int, dtype: torch.dtype = torch.float32, sparsity: float = 0.5
) -> sk.PackedWeight:
    weight, granularity = torch.randn(outputs, inputs).to(dtype), sk.Block(rows, cols)
    return sk.pack(weight, granularity, sk.make_mask(weight, granularity, sparsity))


def linear(x: Tensor, packed: sk.PackedWeight, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    return torch.ops.sparsekern.triton_block_linear(x, *packed.tensors, bias, *packed.shape, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    rows, cols, outputs, inputs, tokens = shape
    packed = packed_weight(rows, cols, outputs, inputs, dtype)
    x, bias = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs).to(dtype)
    check(linear(x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_activations(activation: str, with_bias: bool) -> None:
    packed, x = packed_weight(32, 16, 70, 50), 3 * torch.randn(9, 50)
    bias = torch.randn(70) if with_bias else None
    check(linear(x, packed, bias, activation), x, packed, bias, activation)


def test_relu_keeps_nan_as_torch_does() -> None:
    packed, x = packed_weight(16, 16, 16, 16, sparsity=0), torch.randn(3, 16)
    x[1, 5] = float("nan")
    y = linear(x, packed, None, "relu")
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("kept", [[], [1], [0, 2]], ids=str)
def test_rows_without_blocks_give_the_bias(kept: list[int]) -> None:
    mask = torch.zeros(3, 16, 6, 16, dtype=torch.bool)
    mask[kept, :, 1:5] = True
    mask = mask.view(48, 96)
    packed = sk.pack(torch.randn(48, 96), sk.Block(16, 16), mask)
    x, bias = torch.randn(5, 96), torch.randn(48)
    y = linear(x, packed, bias)
    check(y, x, packed, bias)
    empty = [row for row in range(3) if row not in kept]
    assert torch.equal(y.view(5, 3, 16)[:, empty], bias.view(3, 16)[empty].expand(5, -1, -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_beyond_the_tensors_is_used(dtype: torch.dtype) -> None:
    # Every row of three blocks: the last step of four would reach into the next row, and behind the values.
    packed = packed_weight(16, 16, 40, 70, dtype, sparsity=0.4)
    x = torch.full((8, 96), float("nan"), dtype=dtype)[2:7, 3:73]
    x.copy_(torch.randn(5, 70))
    buffers = {name: torch.full((part.numel() + 4096,), 77, dtype=part.dtype) for name, part in packed.parts.items()}
    buffers["values"].fill_(float("nan"))
    parts = [buffers[name][: part.numel()].view(part.shape).copy_(part) for name, part in packed.parts.items()]
    check(torch.ops.sparsekern.triton_block_linear(x, *parts, None, 40, 70, "none"), x, packed)


def test_infinite_inputs_of_dropped_blocks_do_not_matter() -> None:
    mask = torch.zeros(16, 64, dtype=torch.bool)
    mask[:, 32:48] = True
    packed = sk.pack(torch.randn(16, 64), sk.Block(16, 16), mask)
    x = torch.randn(4, 64)
    x[:, :32] = float("inf")
    assert linear(x, packed).isfinite().all()


@pytest.mark.parametrize("leading", [(), (2, 3), (0,), (2, 0)], ids=str)
def test_leading_dimensions(leading: tuple[int, ...]) -> None:
    packed, x = packed_weight(16, 16, 40, 48), torch.randn(*leading, 48)
    y = linear(x, packed)
    assert y.shape == (*leading, 40) and y.is_contiguous()
    check(y, x, packed)


def test_strides() -> None:
    packed = packed_weight(16, 16, 40, 48)
    bias = torch.randn(40, 2)[:, 1]
    for x in (torch.randn(48, 7).T, torch.randn(7, 96)[:, ::2], torch.randn(48).expand(7, 48)):
        assert not x.is_contiguous()
        check(linear(x, packed, bias), x, packed, bias)


def test_both_encodings_of_columns() -> None:
    # Block columns beyond 2^15, which as signed 16-bit numbers would be negative.
    inputs = 40_000 * 16
    mask = torch.zeros(16, inputs, dtype=torch.bool)
    for column in (0, 255, 256, 32_767, 32_768, 39_999):
        mask[:, column * 16 : column * 16 + 16] = True
    packed = sk.pack(torch.randn(16, inputs), sk.Block(16, 16), mask)
    x = torch.randn(2, inputs)
    y = linear(x, packed)
    check(y, x, packed)
    wide = decode_columns(packed.parts["columns"]).int()
    values, offsets = packed.parts["values"], packed.parts["offsets"]
    args = (None, *packed.shape, "none")
    assert torch.equal(torch.ops.sparsekern.triton_block_linear(x, values, wide, offsets, *args), y)


def test_every_block_row_and_tile_of_tokens_has_its_program() -> None:
    # More block rows than the swizzle takes together, and no multiple of it; three tiles of tokens.
    packed = packed_weight(16, 16, 16 * 19, 32)
    tokens = 2 * tiles.TOKENS_FLOAT32[-1] + 1
    x = torch.randn(tokens, 32)
    check(linear(x, packed), x, packed)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation: str) -> None:
    packed = packed_weight(16, 16, 40, 70)
    values = packed.values.requires_grad_()
    x, bias = torch.randn(2, 3, 70, requires_grad=True), torch.randn(40, requires_grad=True)
    y = linear(x, packed, bias, activation)
    weight = packed.to_dense()
    apply = {"none": lambda y: y}.get(activation) or getattr(torch.nn.functional, activation)
    expected = apply(torch.nn.functional.linear(x.double(), weight.double(), bias.double()))
    direction = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, values, bias), direction)
    theirs = torch.autograd.grad(expected, (x, values, bias), direction.double())
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_op_keeps_its_promises_to_torch() -> None:
    packed = packed_weight(16, 16, 40, 70)
    packed.values.requires_grad_()
    bias = torch.randn(40, requires_grad=True)
    # Not that of tracing, for the interpreter computes at once: test_backend.py traces.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for x in (torch.randn(5, 70, requires_grad=True), torch.randn(2, 3, 70), torch.randn(0, 70)):
        arguments = (x, *packed.tensors, bias, 40, 70, "gelu")
        torch.library.opcheck(torch.ops.sparsekern.triton_block_linear.default, arguments, test_utils=tests)
