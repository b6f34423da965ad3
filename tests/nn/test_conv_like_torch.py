"""Convolutions do what those of PyTorch do: random hyper-parameters, unusual inputs, errors, PyTorch's own tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import Granularity
from sparsekern.ops_conv import CONV_ACTIVATIONS

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def whole(weight: Tensor) -> Tensor:
    """The mask that keeps everything."""
    return torch.ones_like(weight, dtype=torch.bool)


# ---- random hyper-parameters ---------------------------------------------------------------------


def pairs(low: int, high: int) -> st.SearchStrategy[Any]:
    number = st.integers(low, high)
    return st.one_of(number, st.tuples(number, number))


@st.composite
def granularities(draw: st.DrawFn, rows: int, columns: int) -> Granularity:
    choices: list[Granularity] = [sk.Unstructured(), sk.Channel()]
    choices.append(sk.Block(draw(st.integers(1, min(rows, 16))), draw(st.integers(1, min(columns, 4)))))
    if columns >= 4:
        choices.append(sk.NM(2, 4, 4 if rows >= 4 and draw(st.booleans()) else 1))
    return draw(st.sampled_from(choices))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, sk.SparseConv2d, Tensor]:
    """A masked dense layer in float64, the sparse one in float32 or bfloat16, and an input."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 20))
    padding = draw(st.one_of(pairs(0, 4), st.sampled_from(["same", "valid"])))
    conv = nn.Conv2d(
        inputs,
        outputs,
        draw(pairs(1, 4)),
        stride=1 if padding == "same" else draw(pairs(1, 3)),
        padding=padding,
        dilation=draw(pairs(1, 3)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    conv.to(dtype)
    granularity = draw(granularities(outputs, conv.weight[0].numel()))
    sparsity = granularity.implied_sparsity or draw(st.sampled_from([0.0, 0.5, 0.9]))
    layer = sk.SparseConv2d.from_dense(conv, granularity, sparsity)
    dense = layer.to_dense().double()
    size = (draw(st.integers(0, 3)), inputs, draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    x = torch.randn(size).to(memory_format=draw(st.sampled_from(LAYOUTS))).to(dtype)
    return dense, layer, views(draw, x)


def views(draw: st.DrawFn, x: Tensor) -> Tensor:
    """The same numbers, or some of them, at other strides."""
    return draw(
        st.sampled_from(
            [
                lambda: x,
                lambda: x,
                lambda: x.mT,
                lambda: x[:, :, ::2, 1:] if x.shape[3] > 1 else x,
                lambda: x[:1].expand(3, -1, -1, -1) if len(x) else x,
                lambda: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
                lambda: x.flip(0).mT,
                lambda: x[0] if len(x) else x,
            ]
        )
    )()


@given(convolutions())
@settings(max_examples=300)
def test_equals_the_dense_convolution(case: tuple[nn.Conv2d, sk.SparseConv2d, Tensor]) -> None:
    dense, layer, x = case
    try:
        expected = dense(x.double())
    except RuntimeError:
        with pytest.raises(RuntimeError):
            layer(x)
        return
    y = layer(x)
    assert y.shape == expected.shape and y.dtype == x.dtype
    if x.dim() == 4 and min(x.shape) > 1:  # strides of sides of 1 may be anything
        layouts = [layout for layout in LAYOUTS if x.is_contiguous(memory_format=layout)]
        assert len(layouts) != 1 or y.is_contiguous(memory_format=layouts[0]), "not in the layout that came in"
    tolerance = {"rtol": 2e-2, "atol": 3e-2} if x.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(y.double(), expected, **tolerance)
    if layer.padding_mode == "zeros":
        numbers = (layer.stride, layer.padding, layer.dilation, layer.groups)
        assert torch.equal(sk.conv2d(x, layer.packed, layer.bias, *numbers), y)


@given(convolutions(), st.sampled_from(CONV_ACTIVATIONS))
@settings(max_examples=100)
def test_gradients_equal_those_of_the_dense_convolution(
    case: tuple[nn.Conv2d, sk.SparseConv2d, Tensor], activation: str
) -> None:
    dense, layer, x = case
    layer = sk.SparseConv2d.of_conv(layer, layer.packed, layer.bias, activation).double()
    layer.values.requires_grad_()
    found, wanted = (x.double().detach().requires_grad_() for _ in range(2))
    try:
        expected = dense(wanted)
    except RuntimeError:
        return
    if activation != "none":
        expected = getattr(F, activation)(expected)
    y, grad = layer(found), torch.randn_like(expected)
    torch.testing.assert_close(y, expected)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(found.grad, wanted.grad)
    kept = layer.granularity.gather(dense.weight.grad.permute(0, 2, 3, 1).flatten(1), layer.packed.parts)
    torch.testing.assert_close(layer.values.grad, kept)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


# ---- unusual inputs ------------------------------------------------------------------------------


def both(**options: Any) -> tuple[nn.Conv2d, sk.SparseConv2d]:
    conv = nn.Conv2d(3, 4, 3, **options)
    return conv, sk.SparseConv2d.from_dense(conv, sk.Block(4, 1), mask=whole(conv.weight))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "x",
    [
        lambda: torch.randn(1, 3, 2, 5),
        lambda: torch.randn(0, 3, 2, 2),
        lambda: torch.randn(0, 3, 5, 5),
        lambda: torch.randn(0, 3, 0, 5),
        lambda: torch.randn(1, 3, 0, 5),
        lambda: torch.randn(1, 4, 5, 5),
        lambda: torch.randn(4, 5, 5),
        lambda: torch.randn(3, 5, 5),
        lambda: torch.randn(3, 0, 5),
        lambda: torch.randn(5, 5),
        lambda: torch.randn(3),
        lambda: torch.tensor(1.0),
        lambda: torch.randn(1, 1, 3, 5, 5),
        lambda: torch.randn(1, 3, 5, 5).double(),
        lambda: torch.ones(1, 3, 5, 5, dtype=torch.int64),
        lambda: torch.randn(1, 3, 5, 5).to_sparse(),
        lambda: torch.randn(1, 5, 5, 3).permute(0, 3, 1, 2),
        lambda: torch.complex(torch.randn(1, 3, 5, 5), torch.randn(1, 3, 5, 5)).conj().imag,  # a negative view
        lambda: torch.randn(1, 3, 50, 50),
    ],
)  # fmt: skip
@pytest.mark.parametrize("padding", [0, 1, 7, 500, "same"])
def test_any_input_gives_what_torch_gives(x: Callable[[], Tensor], padding: Any, mode: str) -> None:
    dense, layer = both(padding=padding, padding_mode=mode)
    image = x()
    try:
        expected = dense(image)
    except Exception as error:
        with pytest.raises(RuntimeError if isinstance(error, RuntimeError) else type(error)):
            layer(image)
    else:
        y = layer(image)
        assert y.shape == expected.shape
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    "options",
    [{"stride": 0}, {"stride": -1}, {"padding": -1}, {"dilation": 0}, {"stride": (1, 1, 1)}, {"padding": (1, 1, 1)},
     {"groups": 0}, {"groups": 3}, {"padding": "full"}, {"padding": "same", "stride": 2}, {"stride": 1.5},
     {"bias": torch.zeros(5)}, {"bias": torch.zeros(4).double()}],
    ids=str,
)  # fmt: skip
def test_arguments_that_torch_refuses(options: dict[str, Any]) -> None:
    x, weight = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        F.conv2d(x, weight, **options)
    with pytest.raises(theirs.type, match=r"^conv2d: "):
        sk.conv2d(x, sk.pack(weight, sk.Block(4, 1)), **options)


def test_errors_name_the_layer() -> None:
    _, layer = both()
    layer.name = "features.3"
    with pytest.raises(RuntimeError, match=r"^features\.3: expected an input \[batch, 3, height, width\] or \[3, heig"):
        layer(torch.randn(1, 4, 9, 9))
    with pytest.raises(
        RuntimeError, match=r"^features\.3: expected an input of pixels .* \[3, 3\].*, got 2 x 9 pixels"
    ):
        layer(torch.randn(1, 3, 2, 9))


# ---- PyTorch's own tests, at density 1 ------------------------------------------------------------


@pytest.fixture(scope="module")
def internal() -> Any:
    """PyTorch's tests, without the lock that importing them puts on its global flags."""
    pytest.importorskip("expecttest", reason="PyTorch's tests import it: pip install expecttest")
    import torch.testing._internal.common_methods_invocations as operators
    import torch.testing._internal.common_modules as modules
    import torch.testing._internal.common_nn as layers

    torch.backends.__allow_nonbracketed_mutation_flag = True
    return type("Internal", (), {"operators": operators, "modules": modules, "layers": layers})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("granularity", [sk.Unstructured(), sk.Block(5, 1), sk.Channel()], ids=lambda g: g.label)
def test_module_inputs(internal: Any, dtype: torch.dtype, training: bool, granularity: Granularity) -> None:
    (info,) = [info for info in internal.modules.module_db if info.module_cls is nn.Conv2d]
    cases = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    assert len(cases) >= 4
    for case in cases:
        made, called = case.constructor_input, case.forward_input
        conv = nn.Conv2d(*made.args, **made.kwargs, dtype=dtype).train(training)
        layer = sk.SparseConv2d.from_dense(conv, granularity, mask=whole(conv.weight))
        same_as_dense(conv, layer, called.args[0])
        if case.reference_fn is not None:
            expected = case.reference_fn(conv, *called.args, **called.kwargs)
            torch.testing.assert_close(layer(*called.args, **called.kwargs), expected)
    assert info.module_error_inputs_func is None, "there are errors to be tested now"


def same_as_dense(conv: nn.Conv2d, layer: sk.SparseConv2d, x: Tensor) -> None:
    layer.values.requires_grad_()
    found, wanted = (x.detach().clone().requires_grad_() for _ in range(2))
    y, expected = layer(found), conv(wanted)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(expected)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(found.grad, wanted.grad)
    weight = layer.granularity.gather(conv.weight.grad.permute(0, 2, 3, 1).flatten(1), layer.packed.parts)
    torch.testing.assert_close(layer.values.grad, weight)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, conv.bias.grad)


def test_new_module_tests(internal: Any) -> None:
    cases = [
        case
        for case in internal.layers.get_new_module_tests()
        if case.get("fullname", case.get("module_name", "")).startswith("Conv2d")
    ]
    assert len(cases) >= 20
    for case in cases:
        conv = case["constructor"]() if "constructor" in case else nn.Conv2d(*case["constructor_args"])
        layer = sk.SparseConv2d.from_dense(conv.double(), sk.Unstructured(), mask=whole(conv.weight))
        same_as_dense(conv, layer, torch.randn(case["input_size"], dtype=torch.float64))
        torch.autograd.gradcheck(
            layer, torch.randn(case["input_size"], dtype=torch.float64, requires_grad=True), fast_mode=True
        )


def test_operator_samples_and_errors(internal: Any) -> None:
    operators = internal.operators
    (info,) = [info for info in operators.op_db if info.name == "nn.functional.conv2d"]
    samples = list(info.sample_inputs("cpu", torch.float64, requires_grad=False))
    assert len(samples) >= 20
    for sample in samples:
        weight, bias = sample.args
        packed = sk.pack(weight, sk.Unstructured(), whole(weight))
        expected = F.conv2d(sample.input, weight, bias, **sample.kwargs)
        torch.testing.assert_close(sk.conv2d(sample.input, packed, bias, **sample.kwargs), expected)
    refused = 0
    for error in info.error_inputs("cpu"):
        sample = error.sample_input
        weight, bias = sample.args
        if weight.dim() == 4 and weight.is_floating_point():
            with pytest.raises(error.error_type):
                sk.conv2d(sample.input, sk.pack(weight, sk.Unstructured(), whole(weight)), bias, **sample.kwargs)
            refused += 1
    assert refused >= 7
