"""The n:m kernel under Triton's interpreter; run by test_interpreted.py, in a process with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import pytest
import torch
from interpreter import check, guard_output  # noqa: F401
from torch import Tensor

import sparsekern as sk
from sparsekern.backends.triton import tiles
from sparsekern.ops import ACTIVATIONS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PATTERNS = [(1, 2), (1, 4), (2, 4), (4, 8), (2, 8), (8, 16), (1, 16)]
SHAPES = [
    # outputs, inputs, tokens
    (16, 32, 1),  # one tile of 2:4
    (40, 70, 3),  # every tail
    (130, 256, 19),  # whole steps
    (64, 515, 70),
]


def packed_weight(n: int, m: int, outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> sk.PackedWeight:
    weight = torch.randn(outputs, inputs).to(dtype)
    return sk.pack(weight, sk.NM(n, m), sk.make_mask(weight, sk.NM(n, m)))


def linear(x: Tensor, packed: sk.PackedWeight, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    pattern = packed.granularity
    assert isinstance(pattern, sk.NM)
    return torch.ops.sparsekern.triton_nm_linear(
        x, *packed.tensors, bias, pattern.n, pattern.m, *packed.shape, activation
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patterns(pattern: tuple[int, int], shape: tuple[int, int, int]) -> None:
    outputs, inputs, tokens = shape
    dtype = torch.float32 if pattern[1] <= tiles.MOST_M_FLOAT32 else torch.float16
    packed = packed_weight(*pattern, outputs, inputs, dtype)
    x, bias = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs).to(dtype)
    check(linear(x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", [(2, 4), (4, 8)], ids=str)
def test_dtypes(pattern: tuple[int, int], dtype: torch.dtype) -> None:
    packed = packed_weight(*pattern, 70, 100, dtype)
    x, bias = torch.randn(140, 100).to(dtype), torch.randn(70).to(dtype)
    check(linear(x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_activations(activation: str, with_bias: bool) -> None:
    packed, x = packed_weight(2, 4, 70, 50), 3 * torch.randn(9, 50)
    bias = torch.randn(70) if with_bias else None
    check(linear(x, packed, bias, activation), x, packed, bias, activation)


def test_groups_that_keep_fewer() -> None:
    weight = torch.zeros(20, 40)
    weight[3, 5], weight[19, 39], weight[8, 0], weight[8, 3] = 1, 2, 3, 4
    packed = sk.pack(weight, sk.NM(2, 4))
    x = torch.randn(6, 40)
    check(linear(x, packed), x, packed)


def test_nothing_beyond_the_tensors_is_used() -> None:
    # Three tiles of groups, of which a step takes two.
    packed = packed_weight(2, 4, 40, 70, torch.float16)
    x = torch.full((8, 96), float("nan"), dtype=torch.float16)[2:7, 3:73]
    x.copy_(torch.randn(5, 70))
    values, positions = packed.tensors
    beyond = torch.full((values.numel() + 65536,), float("nan"), dtype=torch.float16)
    values = beyond[: values.numel()].view(values.shape).copy_(values)
    check(torch.ops.sparsekern.triton_nm_linear(x, values, positions, None, 2, 4, 40, 70, "none"), x, packed)


@pytest.mark.parametrize("leading", [(), (2, 3), (0,)], ids=str)
def test_leading_dimensions(leading: tuple[int, ...]) -> None:
    packed, x = packed_weight(2, 4, 40, 48), torch.randn(*leading, 48)
    y = linear(x, packed)
    assert y.shape == (*leading, 40) and y.is_contiguous()
    check(y, x, packed)


def test_every_row_and_tile_of_tokens_has_its_program() -> None:
    tile = tiles.nm_tile(80, 4, 1000, 4)
    # More tiles of rows than the swizzle takes together, and no multiple of it; three tiles of tokens.
    packed = packed_weight(2, 4, tile.rows * 9 + 1, 32)
    x = torch.randn(2 * tile.tokens + 1, 32)
    check(linear(x, packed), x, packed)


def test_gradients() -> None:
    packed = packed_weight(2, 4, 40, 70)
    values = packed.values.requires_grad_()
    x = torch.randn(2, 3, 70, requires_grad=True)
    y = linear(x, packed, None, "silu")
    expected = torch.nn.functional.silu(x.double() @ packed.to_dense().double().T)
    direction = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, values), direction)
    theirs = torch.autograd.grad(expected, (x, values), direction.double())
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_op_keeps_its_promises_to_torch() -> None:
    packed = packed_weight(2, 4, 40, 70)
    packed.values.requires_grad_()
    bias = torch.randn(40, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for x in (torch.randn(5, 70, requires_grad=True), torch.randn(2, 3, 70), torch.randn(0, 70)):
        arguments = (x, *packed.tensors, bias, 2, 4, 40, 70, "gelu")
        torch.library.opcheck(torch.ops.sparsekern.triton_nm_linear.default, arguments, test_utils=tests)
