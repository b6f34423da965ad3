"""The kernel of convolutions under Triton's interpreter; run by test_interpreted.py with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from convolutions import CONVOLUTIONS, Convolution, assert_convolved, draw
from interpreter import guard_output  # noqa: F401
from torch import Tensor

import sparsekern as sk
from sparsekern.backends.triton import tiles
from sparsekern.layouts.compressed import decode_columns
from sparsekern.ops import APPLY
from sparsekern.ops_conv import CONV_ACTIVATIONS, layout_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAST = torch.channels_last


def conv(
    case: Convolution, x: Tensor, packed: sk.PackedWeight, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    rest = ([*packed.dense_shape], *case.numbers, activation)
    return torch.ops.sparsekern.triton_block_conv2d(x, *packed.tensors, bias, *rest)


def check(
    case: Convolution,
    y: Tensor,
    x: Tensor,
    packed: sk.PackedWeight,
    bias: Tensor | None = None,
    activation: str = "none",
) -> None:
    # A whole unit: where float32 becomes bfloat16, the interpreter cuts off.
    assert_convolved(case, y, x, packed, bias, activation, unit=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(case: Convolution, dtype: torch.dtype) -> None:
    packed, x, bias = case.packed(dtype), case.image(dtype), torch.randn(case.outputs).to(dtype)
    check(case, conv(case, x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("seed", range(60))
def test_any_convolution(seed: int) -> None:
    case, chance = draw(seed), random.Random(seed + 1000)
    dtype, activation = chance.choice(DTYPES), chance.choice(CONV_ACTIVATIONS)
    packed, x = case.packed(dtype, chance.choice([0.0, 0.3, 0.7, 0.95])), case.image(dtype)
    bias = torch.randn(case.outputs).to(dtype) if chance.random() < 0.5 else None
    check(case, conv(case, x, packed, bias, activation), x, packed, bias, activation)


@pytest.mark.parametrize("activation", CONV_ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_activations(activation: str, with_bias: bool) -> None:
    case = CONVOLUTIONS[0]
    packed, x = case.packed(), case.image()
    bias = 3 * torch.randn(case.outputs) if with_bias else None
    check(case, conv(case, x, packed, bias, activation), x, packed, bias, activation)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_nan_stays_nan(activation: str) -> None:
    case = Convolution((16, 16), 16, 16, (1, 1), (3, 3), stride=(2, 2), batch=1)
    packed, x = case.packed(sparsity=0.0), case.image()
    x[0, 5, 2, 0] = float("nan")
    y = conv(case, x, packed, None, activation)
    assert y[0, :, 1, 0].isnan().all() and int(y.isnan().sum()) == 16


def test_block_rows_without_blocks_give_the_bias() -> None:
    case = Convolution((16, 16), 48, 32, (2, 2), (4, 4))
    mask = torch.zeros(48, 32, 2, 2, dtype=torch.bool)
    mask[16:32, :16] = True
    packed, x, bias = sk.pack(torch.randn(48, 32, 2, 2), sk.Block(16, 16), mask), case.image(), torch.randn(48)
    y = conv(case, x, packed, bias)
    check(case, y, x, packed, bias)
    assert torch.equal(y[:, 32:], bias[32:, None, None].expand(2, -1, 3, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CONVOLUTIONS[0], CONVOLUTIONS[5], CONVOLUTIONS[7]], ids=str)
def test_nothing_beyond_the_tensors_is_used(case: Convolution, dtype: torch.dtype) -> None:
    """The image lies in NaN on all sides, channels included, and so do the values."""
    packed, image = case.packed(dtype, 0.4), case.image(dtype)
    batch, channels, height, width = image.shape
    around = torch.full((batch + 2, channels + 32, height + 4, width + 4), float("nan"), dtype=dtype)
    x = around.to(memory_format=LAST)[1:-1, 16:-16, 2:-2, 2:-2]
    x.copy_(image)
    buffers = {name: torch.full((part.numel() + 4096,), 77, dtype=part.dtype) for name, part in packed.parts.items()}
    buffers["values"].fill_(float("nan"))
    parts = [buffers[name][: part.numel()].view(part.shape).copy_(part) for name, part in packed.parts.items()]
    rest = ([*packed.dense_shape], *case.numbers, "none")
    check(case, torch.ops.sparsekern.triton_block_conv2d(x, *parts, None, *rest), x, packed)


def test_infinite_inputs_of_dropped_blocks_do_not_matter() -> None:
    case = Convolution((16, 16), 16, 32, (3, 3), (4, 4), padding=(1, 1))
    mask = torch.zeros(16, 32, 3, 3, dtype=torch.bool)
    mask[:, 16:] = True
    x = case.image()
    x[:, :16] = float("inf")
    assert conv(case, x, sk.pack(torch.randn(16, 32, 3, 3), sk.Block(16, 16), mask)).isfinite().all()


def test_images_of_any_strides() -> None:
    case = CONVOLUTIONS[0]
    packed, x = case.packed(), case.image()
    odd = torch.randn(2, 33, 6, 5).to(memory_format=LAST)[:, 1:]
    every_other = torch.randn(2, 32, 12, 10).to(memory_format=LAST)[:, :, ::2, 1::2]
    for image in (x.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3), odd, every_other, x.flip(0)[:1]):
        check(case, conv(case, image, packed), image, packed)
    for image in (x.contiguous(), x):
        expected = torch.empty(2, 40, 6, 5, device="meta", memory_format=layout_of(image))
        assert conv(case, image, packed).stride() == expected.stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_no_images(layout: torch.memory_format) -> None:
    case = CONVOLUTIONS[0]
    x = torch.empty(0, 32, 6, 5).to(memory_format=layout)
    assert conv(case, x, case.packed()).shape == (0, 40, 6, 5)


def test_both_encodings_of_columns() -> None:
    case = CONVOLUTIONS[4]
    packed, x = case.packed(), case.image()
    y = conv(case, x, packed)
    values, columns, offsets = packed.tensors
    rest = ([*packed.dense_shape], *case.numbers, "none")
    wide = decode_columns(columns).int()
    assert torch.equal(torch.ops.sparsekern.triton_block_conv2d(x, values, wide, offsets, None, *rest), y)


def test_every_block_row_and_tile_of_pixels_has_its_program() -> None:
    # More block rows than the swizzle takes together, and no multiple of it; three tiles of pixels.
    case = Convolution((16, 16), 16 * 19, 16, (1, 2), (1, 2 * tiles.TOKENS_FLOAT32[-1] + 2), batch=1)
    packed, x = case.packed(), case.image()
    check(case, conv(case, x, packed), x, packed)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("activation", CONV_ACTIVATIONS)
def test_gradients(activation: str, layout: torch.memory_format) -> None:
    case = CONVOLUTIONS[5]
    packed = case.packed()
    values = packed.values.requires_grad_()
    x, bias = case.image().to(memory_format=layout).requires_grad_(), torch.randn(64, requires_grad=True)
    y = conv(case, x, packed, bias, activation)
    expected = APPLY[activation](F.conv2d(x.double(), packed.to_dense().double(), bias.double(), *case.numbers))
    direction = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, values, bias), direction)
    theirs = torch.autograd.grad(expected, (x, values, bias), direction.double())
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_op_keeps_its_promises_to_torch() -> None:
    case = CONVOLUTIONS[0]
    packed, bias = case.packed(), torch.randn(40, requires_grad=True)
    packed.values.requires_grad_()
    # Not that of tracing, for the interpreter computes at once: test_backend.py traces.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for x in (case.image().requires_grad_(), case.image().contiguous(), case.image()[:0]):
        arguments = (x, *packed.tensors, bias, [*packed.dense_shape], *case.numbers, "hardswish")
        torch.library.opcheck(torch.ops.sparsekern.triton_block_conv2d.default, arguments, test_utils=tests)


def test_what_the_op_refuses() -> None:
    case = Convolution((16, 32), 40, 48, (3, 3), (4, 4))
    with pytest.raises(ValueError, match="sparsekern::triton_block_conv2d: blocks of 32 columns reach from one pixel"):
        conv(case, case.image(), case.packed())
    case = Convolution((16, 16), 48, 16, (3, 3), (4, 4), groups=2)
    with pytest.raises(ValueError, match="blocks of 16 rows lie in several groups of 24 outputs"):
        conv(case, case.image(), case.packed())
    with pytest.raises(RuntimeError, match=r"expected an input \[batch, 32, height, width\]"):
        conv(case, case.image()[:, :16], case.packed())
