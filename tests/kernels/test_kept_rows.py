"""Whole outputs by dense products and convolutions of the kept rows, against float64, and their gradients."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import sparsekern as sk
from sparsekern.layouts import PackedWeight
from sparsekern.ops import ACTIVATIONS, APPLY
from sparsekern.ops_conv import CONV_ACTIVATIONS, layout_of
from sparsekern.plan import ConvRequest, Request, refusals, select, select_conv

OPS = torch.ops.sparsekern
UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
each_dtype = pytest.mark.parametrize("dtype", UNITS, ids=str)
each_kept = pytest.mark.parametrize("kept", [0, 1, 16, 21, 39, 40])
each_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
KERNELS = [
    # weight, stride, padding, dilation; a 3x3 one is large beside images of 5 x 4 pixels and small beside 30 x 31
    ((40, 6, 3, 3), (1, 1), (1, 1), (1, 1)),
    ((40, 5, 3, 2), (2, 1), (0, 2), (1, 2)),
    ((40, 7, 1, 1), (1, 1), (0, 0), (1, 1)),
    ((40, 7, 1, 1), (2, 3), (1, 0), (1, 1)),
]
each_kernel = pytest.mark.parametrize("numbers", KERNELS, ids=lambda n: f"{'x'.join(map(str, n[0]))}/{n[1]}")


def weight_of(shape: tuple[int, ...], kept: int, dtype: torch.dtype = torch.float32) -> PackedWeight:
    """Random numbers in so many rows."""
    rows = torch.zeros(shape[0], dtype=torch.bool)
    rows[torch.randperm(shape[0])[:kept]] = True
    return sk.pack(torch.randn(shape).to(dtype), sk.Channel(), rows.view(-1, *[1] * (len(shape) - 1)).expand(shape))


def check(y: Tensor, expected: Tensor, size: Tensor, terms: int) -> None:
    """Any order of a sum in the dtype or better, and an activation that is no steeper than 1.5."""
    # PyTorch may add halves up in halves, a bound on which is of no use: a root of the terms instead of all of them.
    unit = UNITS[y.dtype]
    bound = 1.5 * (terms if unit < 2.0**-20 else terms**0.5 + 4) * unit * size + 1e-6 * (unit > 2.0**-50) + 1e-15
    assert y.shape == expected.shape
    worst = ((y.double() - expected).abs() - bound).max() if y.numel() else torch.tensor(0.0)
    assert worst <= 0, f"{worst} beyond the bound"


# ---- products ------------------------------------------------------------------------------------


@each_dtype
@each_kept
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_products(dtype: torch.dtype, kept: int, activation: str) -> None:
    packed, dense = weight_of((40, 24), kept, dtype), None
    dense = packed.to_dense().double()
    whole = torch.randn(3, 9, 48).to(dtype)
    for x in (
        whole[0, :1, :24],
        whole[..., :24],
        whole[:, :0, ::2],
        whole[..., ::2],
        whole.mT[:, :24].mT,
        whole[0, 0, :24],
    ):
        for bias in (torch.randn(80).to(dtype)[::2], None):
            before = None if bias is None else bias.clone()
            y = sk.linear(x, packed, bias, activation)
            wide = None if bias is None else bias.double()
            expected = APPLY[activation](F.linear(x.double(), dense, wide))
            size = F.linear(x.double().abs(), dense.abs(), None if wide is None else wide.abs())
            assert y.is_contiguous() and y.dtype == dtype
            check(y, expected, size, 32)
            assert bias is None or torch.equal(bias, before), "the bias was written to"


def test_what_is_undefined_in_the_input_does_not_reach_dropped_outputs() -> None:
    packed, bias = weight_of((40, 24), 17), torch.randn(40)
    y = sk.linear(torch.full((3, 24), float("nan")), packed, bias, "gelu")
    kept = torch.zeros(40, dtype=torch.bool).index_fill(0, packed.parts["channels"].long(), True)
    assert y[:, kept].isnan().all() and torch.equal(y[:, ~kept], F.gelu(bias[~kept]).expand(3, -1))


@pytest.mark.parametrize("seed", range(8))
def test_random_products_are_those_of_the_dense_weight(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    outputs, inputs, tokens = (draw.choice([1, 2, 15, 16, 17, 64, 131]) for _ in range(3))
    packed = weight_of((outputs, inputs), draw.randint(0, outputs))
    x, bias = torch.randn(tokens, inputs), torch.randn(outputs)
    torch.testing.assert_close(sk.linear(x, packed, bias), F.linear(x, packed.to_dense(), bias))


# ---- convolutions --------------------------------------------------------------------------------


@each_kernel
@each_layout
@each_kept
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_convolutions(numbers: tuple, layout: torch.memory_format, kept: int, dtype: torch.dtype) -> None:
    shape, *rest = numbers
    packed = weight_of(shape, kept, dtype)
    dense, activation = packed.to_dense().double(), CONV_ACTIVATIONS[kept % len(CONV_ACTIVATIONS)]
    for batch, height, width in ((0, 5, 4), (1, 5, 4), (2, 30, 31)):
        x = torch.randn(batch, shape[1], height, 2 * width).to(dtype).contiguous(memory_format=layout)
        for seen in (x[..., :width].contiguous(memory_format=layout), x[..., ::2]):
            for bias in (torch.randn(40).to(dtype), None):
                y = sk.conv2d(seen, packed, bias, *rest, activation=activation)
                wide = None if bias is None else bias.double()
                expected = APPLY[activation](F.conv2d(seen.double(), dense, wide, *rest))
                size = F.conv2d(seen.double().abs(), dense.abs(), None if wide is None else wide.abs(), *rest)
                assert y.dtype == dtype and y.is_contiguous(memory_format=layout_of(seen))
                check(y, expected, size, dense[0].numel() + 8)


@each_layout
@pytest.mark.parametrize("kernel, size", [(3, (3, 3)), (1, (1, 1)), (3, (3, 5)), (1, (1, 5)), (3, (5, 3))])
@pytest.mark.parametrize("outputs, kept", [(8, 8), (8, 3), (8, 0), (1, 1)])
@pytest.mark.parametrize("batch, inputs", [(0, 16), (1, 16), (2, 16), (2, 1)])
def test_strides_are_those_of_fakes_where_a_size_is_one_too(
    layout: torch.memory_format, kernel: int, size: tuple[int, int], outputs: int, kept: int, batch: int, inputs: int
) -> None:
    packed = weight_of((outputs, inputs, kernel, kernel), kept)
    x = torch.randn(batch, inputs, *size).to(memory_format=layout)
    geometry = (packed.dense_shape, (1, 1), (0, 0), (1, 1), 1)
    grad = torch.randn_like(OPS.channel_conv2d(x, *packed.tensors, None, *geometry, "none"))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (grad, x, *packed.tensors)]
        y, grad_x = (
            OPS.channel_conv2d(*fakes[1:], None, *geometry, "none"),
            OPS.channel_conv2d_grad_input(*fakes, *geometry),
        )
    assert OPS.channel_conv2d(x, *packed.tensors, None, *geometry, "none").stride() == y.stride()
    assert OPS.channel_conv2d_grad_input(grad, x, *packed.tensors, *geometry).stride() == grad_x.stride()


@pytest.mark.parametrize("groups, serves", [(1, "rows"), (2, "reference")])
def test_groups_are_the_references(groups: int, serves: str) -> None:
    request = ConvRequest(sk.Channel(), (8, 3, 3, 3), groups, torch.float32, "cpu")
    assert select_conv(request).name == serves
    assert refusals(request).get("rows") == (None if groups == 1 else "convolutions in 2 groups")
    packed, x = weight_of((8, 3, 3, 3), 5), torch.randn(2, 3 * groups, 6, 6)
    torch.testing.assert_close(sk.conv2d(x, packed, groups=groups), F.conv2d(x, packed.to_dense(), groups=groups))
    with pytest.raises(RuntimeError, match="expected one group, got 2"):
        OPS.channel_conv2d(x, *packed.tensors, None, [8, 3, 3, 3], [1, 1], [0, 0], [1, 1], 2, "none")


# ---- gradients -----------------------------------------------------------------------------------


def gradients(y: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return torch.autograd.grad(y, inputs, grad)


@each_kept
@each_layout
@each_kernel
def test_gradients_of_convolutions(numbers: tuple, layout: torch.memory_format, kept: int) -> None:
    shape, *rest = numbers
    packed = weight_of(shape, kept)
    dense = packed.to_dense().requires_grad_()
    packed.values.requires_grad_()
    bias = torch.randn(40, requires_grad=True)
    for size in ((5, 4), (30, 31)):
        x = torch.randn(2, shape[1], *size).contiguous(memory_format=layout).requires_grad_()
        found = gradients(sk.conv2d(x, packed, bias, *rest, activation="silu"), (x, bias, packed.values))
        wanted = gradients(F.silu(F.conv2d(x, dense, bias, *rest)), (x, bias, dense))
        rows = packed.granularity.gather(wanted[2].permute(0, 2, 3, 1).flatten(1), packed.parts)
        assert found[0].is_contiguous(memory_format=layout)
        for got, want in zip(found, (*wanted[:2], rows), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@each_kept
@each_dtype
def test_gradients_of_products(kept: int, dtype: torch.dtype) -> None:
    packed = weight_of((40, 24), kept, dtype)
    dense = packed.to_dense().requires_grad_()
    packed.values.requires_grad_()
    bias = torch.randn(40, dtype=dtype, requires_grad=True)
    for x in (torch.randn(2, 5, 24).to(dtype).requires_grad_(), torch.randn(0, 24).to(dtype).requires_grad_()):
        found = gradients(sk.linear(x, packed, bias), (x, bias, packed.values))
        wanted = gradients(F.linear(x, dense, bias), (x, bias, dense))
        for got, want in zip(found, (*wanted[:2], packed.granularity.gather(wanted[2], packed.parts)), strict=True):
            torch.testing.assert_close(got, want, rtol=16 * UNITS[dtype], atol=64 * UNITS[dtype])


def test_neither_pass_makes_a_dense_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(*_: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(sk.Channel, "unpack", unpacked)
    monkeypatch.setattr(sk.Channel, "gather", unpacked)
    for packed, x, run in (
        (weight_of((40, 24), 10), torch.randn(5, 24), sk.linear),
        (weight_of((40, 6, 3, 3), 10), torch.randn(2, 6, 5, 5), sk.conv2d),
    ):
        packed.values.requires_grad_()
        with FlopCounterMode(display=False) as counter:
            y = run(x.requires_grad_(), packed)
            y.sum().backward()
        pixels = y.numel() // 40
        assert counter.get_total_flops() == 3 * 2 * pixels * packed.values.numel()
        assert x.grad is not None and packed.values.grad is not None


# ---- what else an op owes ------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 21, 40])
def test_opcheck(kept: int) -> None:
    packed, bias = weight_of((40, 24), kept), torch.randn(40, requires_grad=True)
    packed.values.requires_grad_()
    for x in (torch.randn(2, 3, 24, requires_grad=True), torch.randn(0, 24), torch.randn(24)):
        torch.library.opcheck(OPS.channel_linear.default, (x, *packed.tensors, bias, 40, "gelu"))
    tensors, x, grad = [t.detach() for t in packed.tensors], torch.randn(2, 3, 24), torch.randn(2, 3, 40)
    torch.library.opcheck(OPS.channel_linear_grad_input.default, (grad, *tensors))
    torch.library.opcheck(OPS.channel_linear_grad_values.default, (grad, x, *tensors))


@pytest.mark.parametrize("kept", [0, 21, 40])
@each_layout
@each_kernel
def test_opcheck_of_convolutions(numbers: tuple, layout: torch.memory_format, kept: int) -> None:
    shape, *rest = numbers
    geometry = [list(each) for each in (shape, *rest)]
    packed, bias = weight_of(shape, kept), torch.randn(40, requires_grad=True)
    tensors = [t.detach() for t in packed.tensors]
    packed.values.requires_grad_()
    for size in ((5, 4), (30, 31)):
        x = torch.randn(2, shape[1], *size).contiguous(memory_format=layout)
        arguments = (x.requires_grad_(), *packed.tensors, bias, *geometry, 1, "relu6")
        torch.library.opcheck(OPS.channel_conv2d.default, arguments)
        grad = torch.randn_like(F.conv2d(x, packed.to_dense(), None, *rest)).detach()
        for op in (OPS.channel_conv2d_grad_input.default, OPS.channel_conv2d_grad_values.default):
            torch.library.opcheck(op, (grad, x.detach(), *tensors, *geometry, 1))


def test_compiles_and_exports_as_one_graph() -> None:
    conv = sk.SparseConv2d.from_dense(nn.Conv2d(6, 40, 3), sk.Channel(), 0.5)
    model = nn.Sequential(conv, nn.Flatten(), sk.SparseLinear.from_dense(nn.Linear(40 * 9, 7), sk.Channel(), 0.5))
    x = torch.randn(2, 6, 5, 5)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    batch = torch.export.Dim("batch", min=2, max=64)
    again = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(again(torch.cat([x, x])), torch.cat([expected, expected]))
    torch.compiler.reset()


def test_second_derivatives_are_an_error() -> None:
    for packed, x, run in (
        (weight_of((40, 24), 10), torch.randn(5, 24, requires_grad=True), sk.linear),
        (weight_of((40, 6, 3, 3), 10), torch.randn(2, 6, 5, 5, requires_grad=True), sk.conv2d),
    ):
        (grad,) = torch.autograd.grad(run(x, packed).square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            grad.sum().backward()


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
@each_dtype
def test_it_serves_every_device_and_dtype_and_nothing_else(device: str, dtype: torch.dtype) -> None:
    request = Request(sk.Channel(), (64, 32), dtype, device)
    assert select(request).name == "rows" and refusals(request) == {}
    other = Request(sk.Block(4, 1), (64, 32), dtype, "meta")
    assert "rows" not in refusals(other) and select(other).name == "reference"
