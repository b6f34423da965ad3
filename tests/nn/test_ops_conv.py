"""The torch ops of convolutions: schema, fake, autograd and FLOP counts agree, for every granularity."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sparsekern as sk
from sparsekern.layouts import Granularity, PackedWeight
from sparsekern.ops_conv import CONV_ACTIVATIONS, layout_of
from sparsekern.plan.convolutions import ConvRequest
from sparsekern.plan.registry import backend_named

OPS = torch.ops.sparsekern
GEOMETRIES = [
    ([8, 4, 3, 3], [1, 1], [1, 1], [1, 1], 1),
    ([8, 4, 3, 2], [2, 1], [0, 2], [1, 2], 2),
    ([32, 4, 2, 3], [1, 2], [1, 0], [1, 1], 2),
    ([8, 4, 1, 1], [1, 1], [0, 0], [1, 1], 1),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
each_granularity = pytest.mark.parametrize(
    "granularity",
    [sk.Block(4, 1), sk.Block(3, 2), sk.NM(2, 4), sk.NM(2, 4, 4), sk.Unstructured(), sk.Channel()],
    ids=lambda g: g.label,
)
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "x".join(map(str, g[0])))
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])


def packed_as(granularity: Granularity, geometry: tuple, trained: bool = True) -> PackedWeight:
    weight = torch.randn(geometry[0])
    packed = sk.pack(weight, granularity, sk.make_mask(weight, granularity, granularity.implied_sparsity or 0.5))
    packed.values.requires_grad_(trained)
    return packed


def image(geometry: tuple, batch: int = 2, layout: torch.memory_format = LAYOUTS[0]) -> Tensor:
    return torch.randn(batch, geometry[0][1] * geometry[4], 7, 6).to(memory_format=layout).requires_grad_()


def format_call(packed: PackedWeight, geometry: tuple) -> tuple[object, tuple[object, ...], tuple[object, ...]] | None:
    """The op of a layout, what follows the packed tensors before the geometry, and its end; None if it has none.

    Kernels take groups of whole bands of outputs only, and say so.
    """
    granularity = packed.granularity
    request = ConvRequest(granularity, tuple(geometry[0]), geometry[-1], packed.dtype, "cpu")
    if "stored together" in str(backend_named("cpu").conv_refusal(request)):
        return None
    if isinstance(granularity, sk.NM) and granularity.rows == 1:
        return OPS.nm_conv2d.default, (granularity.n, granularity.m), ("",)
    return (OPS.block_conv2d.default, (), ("",)) if isinstance(granularity, (sk.Block, sk.NM)) else None


@pytest.mark.parametrize("granularity", [sk.Block(3, 2), sk.NM(2, 4), sk.Channel()], ids=lambda g: g.label)
def test_opcheck(granularity: Granularity) -> None:
    geometry = GEOMETRIES[1]
    packed, bias = packed_as(granularity, geometry), torch.randn(geometry[0][0], requires_grad=True)
    for x in (image(geometry, 2, LAYOUTS[1]), image(geometry, 0), image(geometry)[:, :, ::2, 1:]):
        arguments = (x, packed.tensors, bias, granularity.spec, *geometry, "hardswish")
        torch.library.opcheck(OPS.conv2d.default, arguments)
        if call := format_call(packed, geometry):
            op, numbers, end = call
            torch.library.opcheck(op, (x, *packed.tensors, bias, *numbers, *geometry, "relu6", *end))


@each_geometry
@each_layout
def test_gradients_opcheck(geometry: tuple, layout: torch.memory_format) -> None:
    packed, x = packed_as(sk.Block(3, 2), geometry, trained=False), image(geometry, 2, layout).detach()
    grad = torch.randn_like(F.conv2d(x, packed.to_dense(), None, *geometry[1:]))
    for op in (OPS.conv2d_grad_input.default, OPS.conv2d_grad_values.default):
        torch.library.opcheck(op, (grad, x, packed.tensors, packed.granularity.spec, *geometry))


@each_granularity
@each_geometry
@each_layout
@pytest.mark.parametrize("activation", CONV_ACTIVATIONS)
def test_values_and_gradients_are_those_of_torch(
    granularity: Granularity, geometry: tuple, layout: torch.memory_format, activation: str
) -> None:
    packed, x = packed_as(granularity, geometry), image(geometry, 2, layout)
    bias, dense = torch.randn(geometry[0][0], requires_grad=True), packed.to_dense().detach().requires_grad_()
    expected = F.conv2d(x, dense, bias, *geometry[1:])
    if activation != "none":
        expected = getattr(F, activation)(expected)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, bias, dense), grad)
    values = granularity.gather(wanted[2].permute(0, 2, 3, 1).flatten(1), packed.parts)
    ways = [lambda: OPS.conv2d(x, packed.tensors, bias, granularity.spec, *geometry, activation)]
    if call := format_call(packed, geometry):
        op, numbers, end = call
        ways.append(lambda: op(x, *packed.tensors, bias, *numbers, *geometry, activation, *end))
    for way in ways:
        y = way()
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y, expected)
        found = torch.autograd.grad(y, (x, bias, packed.values), grad)
        assert found[0].is_contiguous(memory_format=layout)
        for got, want in zip(found, (*wanted[:2], values), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 3, 5, 4), (2, 1, 5, 4), (2, 3, 1, 1), (2, 1, 1, 1), (0, 3, 5, 4)])
def test_the_layout_of_the_output_is_the_one_that_torch_chooses(
    layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    x = torch.empty(shape, memory_format=layout).normal_()
    views = [x, x[:, :, ::2], x[..., 1:], x.transpose(2, 3), x[:, :1], x[:1].expand(shape)]
    for view in (view for view in views if min(view.shape[1:]) > 0):
        dense = F.conv2d(view, torch.randn(4, view.shape[1], 1, 1))
        assert dense.is_contiguous(memory_format=layout_of(view)), (view.shape, view.stride())


def test_flops_are_those_of_the_stored_weights() -> None:
    geometry = GEOMETRIES[0]
    packed, x = packed_as(sk.Block(4, 1), geometry), image(geometry)
    stored, pixels = packed.values.numel(), 2 * 7 * 6
    with FlopCounterMode(display=False) as counter:
        OPS.conv2d(x, packed.tensors, None, packed.granularity.spec, *geometry, "relu").sum().backward()
    assert counter.get_total_flops() == 3 * 2 * stored * pixels
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        OPS.block_conv2d(x, *packed.tensors, None, *geometry, "none", "")
    assert counter.get_total_flops() == 2 * stored * pixels


def test_autocast_changes_no_bit() -> None:
    geometry = GEOMETRIES[1]
    packed, x = packed_as(sk.Block(4, 1), geometry), image(geometry)

    def results() -> list[Tensor]:
        y = OPS.conv2d(x, packed.tensors, None, packed.granularity.spec, *geometry, "gelu")
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, packed.values))]

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        found = results()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_what_an_op_refuses() -> None:
    geometry = GEOMETRIES[0]
    packed, x = packed_as(sk.Block(4, 1), geometry), image(geometry)
    shape, stride, padding, dilation, groups = geometry
    for change, text in (
        ({"x": x[:, :3]}, r"expected an input \[batch, 4, height, width\]"),
        ({"x": x[0]}, r"expected an input \[batch, 4, height, width\]"),
        ({"x": x.double()}, "expected an input of torch.float32"),
        ({"bias": torch.randn(7)}, r"expected a bias of shape \[8\]"),
        ({"stride": [0, 1]}, "expected two integers >= 1 as stride"),
        ({"padding": [1]}, "expected two integers >= 0 as padding"),
        ({"dilation": [-1, 1]}, "expected two integers >= 1 as dilation"),
        ({"groups": 3}, "expected groups > 0 that divide the 8 outputs"),
        (
            {"padding": [0, 0], "dilation": [1, 3]},
            r"expected an input of pixels that the kernel \[3, 3\].*7 x 6 pixels",
        ),
    ):
        call = {"x": x, "bias": None, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        call |= change
        numbers = (shape, call["stride"], call["padding"], call["dilation"], call["groups"], "none")
        with pytest.raises(RuntimeError, match=f"sparsekern::conv2d: {text}"):
            OPS.conv2d(call["x"], packed.tensors, call["bias"], packed.granularity.spec, *numbers)
        with pytest.raises(RuntimeError, match="expected"):  # the kernels' own words: tests/kernels/test_conv.py
            OPS.block_conv2d(call["x"], *packed.tensors, call["bias"], *numbers, "")
    with pytest.raises(ValueError, match="expected an activation of none, relu, gelu, silu, relu6, hardswish"):
        OPS.conv2d(x, packed.tensors, None, packed.granularity.spec, *geometry, "tanh")
    with pytest.raises((ValueError, RuntimeError), match="'fast'"):
        OPS.block_conv2d(x, *packed.tensors, None, *geometry, "none", "fast")
    y = OPS.conv2d(x, packed.tensors, None, packed.granularity.spec, *geometry, "none")
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        grad.sum().backward()
