"""``join``: layers of one input as one, with their outputs, gradients and stored places."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import Granularity, join_outputs

GRANULARITIES = [
    sk.Unstructured(), sk.Block(16, 1), sk.Block(4, 1), sk.Block(16, 16), sk.Block(3, 2), sk.NM(2, 4), sk.NM(3, 7),
    sk.NM(2, 4, rows=16), sk.Channel(),
]  # fmt: skip
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
SIZES = (48, 96, 48)
IN = 83


def layers_of(
    granularity: Granularity, sizes: Sequence[int] = SIZES, biases: Sequence[bool] = (True, True, True)
) -> list[sk.SparseLinear]:
    sparsity = None if granularity.implied_sparsity else 0.6
    return [
        sk.SparseLinear.from_dense(nn.Linear(IN, size, bias=bias), granularity, sparsity)
        for size, bias in zip(sizes, biases, strict=True)
    ]


@each_granularity
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("biases", [(True, True, True), (True, False, True), (False, False, False)], ids=str)
def test_outputs_are_those_of_the_layers(
    granularity: Granularity, dtype: torch.dtype, biases: tuple[bool, ...], isa: str
) -> None:
    layers = [layer.to(dtype) for layer in layers_of(granularity, biases=biases)]
    joined = sk.join(layers)
    assert (joined.linear.bias is None) == (not any(biases))
    for tokens in (1, 5, 130):
        x = torch.randn(2, tokens, IN).to(dtype)
        outputs = joined(x)
        assert [tuple(y.shape) for y in outputs] == [(2, tokens, size) for size in SIZES]
        for y, layer in zip(outputs, layers, strict=True):
            torch.testing.assert_close(y, layer(x))


@each_granularity
def test_stores_the_same_places(granularity: Granularity) -> None:
    """Zeros among them too: what a pruner keeps may have become zero since."""
    packed = [layer.packed for layer in layers_of(granularity)]
    packed[1].values.flatten()[::3] = 0.0
    joined = join_outputs(packed, ["a", "b", "c"])
    joined.verify()
    assert torch.equal(joined.to_dense(), torch.cat([p.to_dense() for p in packed]))
    stored = [p.granularity.stored(p.parts, p.shape) for p in packed]
    assert joined.granularity.stored(joined.parts, joined.shape) == sum(stored)


@each_granularity
def test_gradients_are_those_of_the_layers(granularity: Granularity) -> None:
    layers = layers_of(granularity)
    for layer in layers:
        layer.packed.values.requires_grad_()
    joined = sk.join(layers)
    x, apart = (torch.randn(9, IN, requires_grad=True) for _ in range(2))
    apart.data.copy_(x.data)
    weights = [torch.randn(9, size) for size in SIZES]

    def backward(outputs: Sequence[Tensor]) -> None:
        torch.stack([(y * w).sum() for y, w in zip(outputs, weights, strict=True)]).sum().backward()

    backward(joined(x))
    backward([layer(apart) for layer in layers])
    torch.testing.assert_close(x.grad, apart.grad)
    torch.testing.assert_close(joined.linear.bias.grad, torch.cat([layer.bias.grad for layer in layers]))
    grads = [sk.PackedWeight(p.granularity, p.shape, {**p.parts, "values": p.values.grad}).to_dense()
             for p in (layer.packed for layer in layers)]  # fmt: skip
    own = joined.linear.packed
    of_joined = sk.PackedWeight(own.granularity, own.shape, {**own.parts, "values": own.values.grad}).to_dense()
    torch.testing.assert_close(of_joined, torch.cat(grads))


def test_an_output_may_be_changed_in_place() -> None:
    layers = layers_of(sk.Block(16, 1))
    x, apart = (torch.ones(3, IN, requires_grad=True) for _ in range(2))
    for outputs in (sk.join(layers)(x), [layer(apart) for layer in layers]):
        sum(y.sum() for y in (outputs[0].relu_(), *outputs[1:])).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(x.grad, apart.grad)


def test_is_a_module_like_others(tmp_path: object) -> None:
    layers = layers_of(sk.Block(16, 1))
    before = [copy.deepcopy(layer.state_dict()) for layer in layers]
    model = nn.ModuleDict({"qkv": sk.join(layers)}).eval()
    x = torch.randn(7, IN)
    expected = [layer(x) for layer in layers]
    sk.save(model, f"{tmp_path}/joined.safetensors")
    other = nn.ModuleDict({"qkv": sk.join(layers_of(sk.Block(16, 1)))}).eval()
    assert sk.load_(other, f"{tmp_path}/joined.safetensors") == ["qkv.linear"]
    compiled = torch.compile(model["qkv"], fullgraph=True)
    for outputs in (model["qkv"](x), other["qkv"](x), compiled(x), copy.deepcopy(model)["qkv"](x)):
        for y, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(y, wanted)
    for layer, state in zip(layers, before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())
    assert "sizes=[48, 96, 48]" in str(model)
    sk.densify_(model)
    assert isinstance(model["qkv"].linear, nn.Linear)
    torch.testing.assert_close(model["qkv"](x)[1], expected[1])


def test_activation_training_and_a_single_layer() -> None:
    layers = [sk.SparseLinear(layer.packed, layer.bias, "gelu") for layer in layers_of(sk.Block(4, 1))]
    layers[0].values.requires_grad_()
    joined = sk.join(layers[:1])
    assert joined.linear.activation == "gelu" and joined.linear.values.requires_grad
    torch.testing.assert_close(joined(torch.ones(3, IN))[0], layers[0](torch.ones(3, IN)))
    assert not sk.join(layers[1:]).linear.values.requires_grad
    assert not sk.join([layer.eval() for layer in layers[1:]]).training


@pytest.mark.parametrize(
    "granularity", [sk.Block(16, 1), sk.Block(16, 16), sk.NM(2, 4, rows=16)], ids=lambda g: g.label
)
def test_groups_of_outputs_are_not_shared(granularity: Granularity) -> None:
    text = f"join: layer 1: its outputs end within a group of {granularity.label}"
    with pytest.raises(ValueError, match=text):
        sk.join(layers_of(granularity, (32, 24, 40)))


def test_uneven_outputs_that_share_nothing() -> None:
    aligned, last = layers_of(sk.Block(16, 1), (32, 40), (True, True))
    assert sk.join([aligned, last]).sizes == (32, 40)
    uneven = layers_of(sk.NM(2, 4), (5, 7), (True, True))  # each row on its own
    x = torch.randn(3, IN)
    torch.testing.assert_close(sk.join(uneven)(x)[1], uneven[1](x))


def test_what_cannot_be_joined_is_named() -> None:
    first, second, _ = layers_of(sk.Block(16, 1))
    cases: list[tuple[object, type[Exception], str]] = [
        ([], ValueError, "expected at least one layer, got none"),
        (first, TypeError, "expected a sequence of SparseLinear, got one SparseLinear"),
        ([first, nn.Linear(IN, 16)], TypeError, "layer 1: expected a SparseLinear, got Linear"),
        (
            [first, *layers_of(sk.Block(4, 1))[:1]],
            ValueError,
            r"layer 1: expected the granularity block\(16,1\) .* got block\(4,1\)",
        ),
        ([first, copy.deepcopy(second).bfloat16()], ValueError, "layer 1: expected the dtype torch.float32"),
        ([first, copy.deepcopy(second).to("meta")], ValueError, "layer 1: expected the device cpu .* got meta"),
        (
            [first, sk.SparseLinear.from_dense(nn.Linear(64, 32), sk.Block(16, 1), 0.5)],
            ValueError,
            "layer 1: expected the in_features 83 of join: layer 0, got 64",
        ),
        (
            [first, sk.SparseLinear(second.packed, None, "relu")],
            ValueError,
            "layer 1: expected activation to be 'none'",
        ),
    ]
    frozen = copy.deepcopy(second)
    frozen.bias.requires_grad_(False)
    cases.append(([first, frozen], ValueError, "the bias of every layer to be trained, or of none"))
    trained = copy.deepcopy(second)
    trained.values.requires_grad_()
    cases.append(([first, trained], ValueError, "layer 1: expected values.requires_grad to be False"))
    diverged = copy.deepcopy(second)
    diverged.values.fill_(float("nan"))
    cases.append(([first, diverged], ValueError, "layer 1: the packed values hold NaN or infinity"))
    thawed = copy.deepcopy(second)
    thawed._dense_requires_grad = False
    cases.append(([first, thawed], ValueError, "layer 1: expected requires_grad of the dense weight to be True"))
    own = copy.deepcopy(second)
    own.__class__ = type("Doubled", (sk.SparseLinear,), {"forward": lambda self, x: 2 * x})
    cases.append(([first, own], ValueError, "layer 1: Doubled has a forward of its own"))
    parametrized = copy.deepcopy(second)
    nn.utils.parametrize.register_parametrization(parametrized, "bias", nn.Identity())
    cases.append(([first, parametrized], ValueError, "layer 1: its bias is parametrized"))
    hooked = copy.deepcopy(second)
    hooked.register_forward_hook(lambda *_: None)
    cases.append(([first, hooked], ValueError, "layer 1: has hooks, which would be lost"))
    for layers, error, text in cases:
        with pytest.raises(error, match=text):
            sk.join(layers)  # type: ignore[arg-type]
