"""``SparseLinear`` keeps the contract of a module, and ``sk.linear`` that of a function."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparsekern as sk
from sparsekern.layouts import Granularity

GRANULARITIES = [
    sk.Block(16, 1), sk.Block(8, 1), sk.Block(4, 4), sk.Block(3, 2), sk.NM(2, 4), sk.NM(2, 4, 8), sk.Unstructured(),
    sk.Channel(),
]  # fmt: skip
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)


def sparse_layer(
    granularity: Granularity = GRANULARITIES[0], sparsity: float = 0.5, bias: bool = True
) -> sk.SparseLinear:
    sparsity = granularity.implied_sparsity or sparsity
    return sk.SparseLinear.from_dense(nn.Linear(24, 40, bias=bias), granularity, sparsity)


def masked(linear: nn.Linear, mask: torch.Tensor) -> nn.Linear:
    twin = copy.deepcopy(linear)
    twin.weight.data *= mask
    return twin


# ---- values --------------------------------------------------------------------------------------


@each_granularity
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_masked_dense_layer(granularity: Granularity, bias: bool, isa: str) -> None:
    linear = nn.Linear(24, 40, bias=bias)
    mask = sk.make_mask(linear.weight, granularity, 0.5)
    dense, x = masked(linear, mask), torch.randn(7, 24)
    for layer in (
        sk.SparseLinear.from_dense(linear, granularity, 0.5),
        sk.SparseLinear.from_dense(linear, granularity, mask=mask),
        sk.SparseLinear.from_dense(dense, granularity),
    ):
        torch.testing.assert_close(layer(x), dense(x))
        assert torch.equal(layer.weight, dense.weight) and torch.equal(layer.to_dense().weight, dense.weight)
        assert (layer.bias is None) == (not bias)
    assert not torch.equal(linear.weight, dense.weight), "from_dense changed the dense layer"


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@each_granularity
def test_activations_are_those_of_torch(granularity: Granularity, activation: str | None, isa: str) -> None:
    packed, bias, x = sparse_layer(granularity).packed, torch.randn(40), torch.randn(5, 24)
    layer = sk.SparseLinear(packed, bias, activation)
    y = x @ packed.to_dense().T + bias
    expected = getattr(nn.functional, activation)(y) if activation else y
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(sk.linear(x, packed, bias, activation), expected)
    torch.testing.assert_close(layer.to_dense()(x), expected)


@each_granularity
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 3, 2), (0,), (3, 0, 2)], ids=str)
def test_any_leading_dimensions(granularity: Granularity, leading: tuple[int, ...]) -> None:
    layer, x = sparse_layer(granularity), torch.randn(*leading, 24)
    expected = layer.to_dense()(x)
    for y in (layer(x), sk.linear(x, layer.packed, layer.bias)):
        assert y.shape == (*leading, 40) and y.is_contiguous()
        torch.testing.assert_close(y, expected)


@each_granularity
def test_any_strides(granularity: Granularity) -> None:
    layer = sparse_layer(granularity)
    dense, base = layer.to_dense(), torch.randn(6, 48, 10)
    for x in (
        base[:, :24, 0],
        base[:, 24:, 3],
        base[0, ::2].T,
        base.transpose(1, 2)[..., :24],
        base[::2, 5:29, :].permute(2, 0, 1),
        torch.randn(24).expand(4, 24),
        torch.randn(5, 1, 24).expand(5, 3, 24),
        torch.randn(2, 4, 24).transpose(0, 1),
    ):
        torch.testing.assert_close(layer(x), dense(x))


@each_granularity
def test_a_weight_with_nothing_kept_is_its_bias(granularity: Granularity) -> None:
    layer = sk.SparseLinear.from_dense(nn.Linear(24, 40), granularity, mask=torch.zeros(40, 24, dtype=torch.bool))
    assert layer.packed.density == (0.5 if granularity == sk.NM(2, 4) else 0)  # whose places are always stored
    assert torch.equal(layer(torch.randn(3, 24)), layer.bias.expand(3, 40))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@each_granularity
def test_other_dtypes(granularity: Granularity, dtype: torch.dtype) -> None:
    layer, x = sparse_layer(granularity).to(dtype), torch.randn(3, 24).to(dtype)
    assert layer(x).dtype == dtype
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


# ---- a module like any other ---------------------------------------------------------------------


@each_granularity
def test_state_dict_round_trip_with_another_number_of_blocks(granularity: Granularity) -> None:
    source, target, x = sparse_layer(granularity, 0.3), sparse_layer(granularity, 0.8), torch.randn(3, 24)
    if granularity.implied_sparsity is None:
        assert source.values.shape != target.values.shape
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    keys = target.load_state_dict(torch.load(buffer))
    assert not keys.missing_keys and not keys.unexpected_keys
    assert torch.equal(source(x), target(x)) and torch.equal(source.weight, target.weight)
    assert list(source.state_dict()) == ["bias", *granularity.part_names]


def test_state_dict_round_trip_by_assignment() -> None:
    source, target, x = sparse_layer(sparsity=0.3), sparse_layer(sparsity=0.8).to("meta"), torch.randn(3, 24)
    target.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(source(x), target(x))
    assert target._backend is source._backend, "the back end of the meta device stayed"


def test_a_tampered_state_dict_is_refused_and_changes_nothing() -> None:
    layer, x = nn.Sequential(sparse_layer(sk.Block(8, 1))), torch.randn(3, 24)
    before, y = copy.deepcopy(layer.state_dict()), layer(x)
    for name, change in (
        ("0.columns", lambda t: torch.full_like(t, 255)),
        ("0.columns", lambda t: t[:-1]),
        ("0.columns", lambda t: t.long()),
        ("0.offsets", lambda t: t + 1),
        ("0.offsets", lambda t: -t),
        ("0.offsets", lambda t: t[:-1]),
        ("0.values", lambda t: t[:-1]),
        ("0.values", lambda t: t * float("nan")),
        ("0.values", lambda t: t.mT.contiguous()),
    ):
        bad = {**before, name: change(before[name])}
        with pytest.raises(ValueError, match=r"^0[.:]"):
            layer.load_state_dict(bad)
        # The same index alone, which a lenient load would take beside the other tensors of the layer.
        with pytest.raises(ValueError, match=r"^0[.:]"):
            layer.load_state_dict({name: bad[name]}, strict=False)
        assert torch.equal(layer(x), y)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "0.columns"'):
        layer.load_state_dict({k: v for k, v in before.items() if k != "0.columns"})


@each_granularity
def test_a_layer_whose_load_hook_fails_stays_whole(granularity: Granularity) -> None:
    layer, other, x = sparse_layer(granularity, 0.8), sparse_layer(granularity, 0.3), torch.randn(3, 24)
    y = layer(x)

    def fail(*args: object) -> None:
        raise RuntimeError("not today")

    layer.register_load_state_dict_pre_hook(fail)
    with pytest.raises(RuntimeError, match="not today"):
        layer.load_state_dict(other.state_dict())
    layer.packed.verify()
    assert torch.equal(layer(x), y)


@each_granularity
def test_copies_are_equal_and_independent(granularity: Granularity) -> None:
    layer, x = sparse_layer(granularity), torch.randn(3, 24)
    layer.name, y = "enc.query", layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    for twin in copies:
        assert torch.equal(twin(x), y) and twin.name == "enc.query" and twin.granularity == granularity
        twin.values.zero_()
        assert torch.equal(layer(x), y)


def test_casts_and_moves_keep_the_indices() -> None:
    for change in (nn.Module.double, lambda m: m.type(torch.float64), lambda m: m.to(torch.float64)):
        layer, x = sparse_layer(sk.Block(16, 1)), torch.randn(3, 24)
        y, columns = layer(x), layer.columns.clone()
        expected = x.double() @ layer.weight.double().T + layer.bias.double()
        change(layer)
        assert layer.values.dtype == layer.bias.dtype == torch.float64
        assert torch.equal(layer.columns, columns) and layer.offsets.dtype == torch.int32
        torch.testing.assert_close(layer(x.double()), expected)  # to the last digits of float64, which y has not
        torch.testing.assert_close(layer.float()(x), y)


def test_meta_and_back() -> None:
    layer, x = sparse_layer(), torch.randn(3, 24)
    y, state = layer(x), copy.deepcopy(layer.state_dict())
    layer.to("meta")
    assert layer(x.to("meta")).shape == (3, 40)
    layer.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(layer(x), y)


@each_granularity
def test_values_that_want_gradients_go_on_wanting_them(granularity: Granularity) -> None:
    layer, other, x = sparse_layer(granularity, 0.3), sparse_layer(granularity, 0.8), torch.randn(3, 24)
    layer.values.requires_grad_()
    for change in (
        nn.Module.double,
        lambda m: m.type(torch.float32),
        lambda m: m.to("cpu"),
        lambda m: m.load_state_dict(other.state_dict()),
        lambda m: m.load_state_dict(sparse_layer(granularity, 0.6).state_dict(), assign=True),
        lambda m: m.to("meta").to_empty(device="cpu").load_state_dict(other.state_dict()),
    ):
        change(layer)
        assert layer.values.is_leaf and layer.values.requires_grad
        twin = copy.deepcopy(layer)
        twin(x.to(twin.values.dtype)).sum().backward()
        assert twin.values.grad is not None
    assert not other.double().values.requires_grad


def test_train_eval_and_printing() -> None:
    dense = nn.Linear(24, 48).eval()
    dense.bias.requires_grad_(False)
    layer = sk.SparseLinear.from_dense(dense, sk.Block(16, 1), 0.5)
    assert not layer.training and not layer.bias.requires_grad
    assert layer.train().training and layer.to_dense().training and not layer.to_dense().bias.requires_grad
    assert not nn.Sequential(layer).eval()[0].to_dense().training
    assert repr(layer) == ("SparseLinear(in_features=24, out_features=48, bias=True, granularity=16x1, density=0.5)")
    assert "activation=relu" in repr(sk.SparseLinear(layer.packed, activation="relu"))
    assert repr(layer.to("meta")).endswith("bias=True, granularity=16x1)"), "nothing can be counted there"


def test_back_to_dense_draws_no_random_numbers_and_keeps_a_frozen_weight_frozen() -> None:
    dense = nn.Linear(24, 40)
    for frozen in (True, False):
        dense.weight.requires_grad_(not frozen)
        layer = pickle.loads(pickle.dumps(sk.SparseLinear.from_dense(dense, sk.Block(8, 1), 0.5)))
        state = torch.get_rng_state()
        assert layer.to_dense().weight.requires_grad != frozen
        assert torch.equal(torch.get_rng_state(), state)


def test_code_that_asks_for_the_weight_gets_the_dense_one() -> None:
    layer = sparse_layer()
    assert layer.weight.shape == (40, 24) and layer.weight.dtype == torch.float32
    assert not layer.weight.requires_grad
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = nn.Parameter(torch.zeros(40, 24))


def test_flops_are_those_of_the_stored_weights() -> None:
    for granularity in (sk.Block(8, 1), sk.Unstructured(), sk.Channel()):
        layer, x = sparse_layer(granularity, 0.75), torch.randn(2, 5, 24)
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 10 * layer.values.numel() == 2 * 10 * 40 * 24 // 4


@each_granularity
def test_flops_of_the_backward_are_one_product_for_each_gradient(granularity: Granularity) -> None:
    layer, x = sparse_layer(granularity), torch.randn(2, 5, 24, requires_grad=True)
    for products, trained in ((1, False), (2, True)):
        layer.values.requires_grad_(trained)
        y = layer(x)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        assert counter.get_total_flops() == products * 2 * 10 * layer.values.numel()


# ---- autocast ------------------------------------------------------------------------------------


@each_granularity
def test_autocast_runs_the_layer_in_its_own_dtype(granularity: Granularity) -> None:
    layer, before, x = sparse_layer(granularity), nn.Linear(24, 24), torch.randn(3, 24)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        hidden = before(x)
        assert hidden.dtype == torch.bfloat16
        for y in (layer(hidden), compiled(hidden), sk.linear(hidden, layer.packed, layer.bias)):
            assert y.dtype == torch.float32
            torch.testing.assert_close(y, layer.to_dense().forward(hidden.float()).float(), rtol=1e-2, atol=1e-2)
        exact = layer(x)
    torch.testing.assert_close(exact, layer(x), rtol=0, atol=0)
    hidden = hidden.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        layer(hidden).sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    torch.compiler.reset()


# ---- refusals ------------------------------------------------------------------------------------


def test_a_wrong_input_is_an_error_that_names_the_layer() -> None:
    layer = sparse_layer()
    layer.name = "encoder.3.query"
    x = torch.randn(3, 24)
    for bad, error, text in (
        (x.double(), TypeError, "expected an input of torch.float32 like the weight, got torch.float64"),
        (x.bfloat16(), TypeError, "got torch.bfloat16"),
        (x.int(), TypeError, "got torch.int32"),
        (x.to("meta"), TypeError, "expected an input on cpu like the weight, got meta"),
        (x[:, :23], ValueError, r"expected an input \[..., 24\], got \[3, 23\]"),
        (x.T, ValueError, r"got \[24, 3\]"),
        (torch.tensor(1.0), ValueError, r"got \[\]"),
    ):
        with pytest.raises(error, match=rf"^encoder\.3\.query: .*{text}"):
            layer(bad)
        with pytest.raises(error, match=rf"^linear: .*{text}"):
            sk.linear(bad, layer.packed)


def test_a_wrong_bias_or_activation() -> None:
    packed, x = sparse_layer().packed, torch.randn(3, 24)
    shape = r"expected a bias of torch.float32 and shape \[40\], got"
    for bias, activation, error, text in (
        (torch.randn(39), None, ValueError, rf"{shape} torch.float32 \[39\]"),
        (torch.randn(40, 1), None, ValueError, rf"{shape} torch.float32 \[40, 1\]"),
        (torch.randn(40).double(), None, TypeError, rf"{shape} torch.float64 \[40\]"),
        (torch.zeros(40, device="meta"), None, TypeError, "expected a bias on cpu like the weight, got meta; move"),
        (None, "tanh", ValueError, "expected an activation of none, relu, gelu, silu, got 'tanh'"),
    ):
        with pytest.raises(error, match=f"^linear: .*{text}"):
            sk.linear(x, packed, bias, activation)
        with pytest.raises(error, match=f"^head: .*{text}"):
            sk.SparseLinear(packed, bias, activation, name="head")


def test_a_bias_on_another_device_names_the_layer_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    model[0].bias = nn.Parameter(torch.zeros(32, device="meta"))
    with pytest.raises(TypeError, match=r"^0: expected a bias on cpu like the weight, got meta; move one of them"):
        sk.sparsify_(model, sk.Sparse(sk.Block(16, 1), 0.5))
    assert type(model[0]) is nn.Linear


def test_what_is_no_packed_weight() -> None:
    for make, what in ((lambda w: sk.linear(torch.randn(3, 24), w), "linear"), (sk.SparseLinear, "SparseLinear")):
        with pytest.raises(TypeError, match=f"^{what}: packed: expected a PackedWeight, got Tensor; sparsekern.pack"):
            make(torch.randn(40, 24))  # type: ignore[arg-type]


@each_granularity
def test_a_packed_weight_made_by_hand_is_verified_before_a_kernel_reads_it(granularity: Granularity) -> None:
    good, x = sparse_layer(granularity).packed, torch.randn(3, 24)
    by_hand = sk.PackedWeight(granularity, (40, 24), dict(good.parts))
    assert torch.equal(sk.linear(x, by_hand), sk.linear(x, good)) and by_hand.verified
    index = granularity.part_names[1]
    for parts in (
        {**good.parts, index: torch.full_like(good.parts[index], 127)},
        dict(reversed(good.parts.items())),
        {name: tensor.to("meta") for name, tensor in good.parts.items()},
    ):
        for use in (lambda w: sk.linear(x, w), sk.SparseLinear):
            with pytest.raises(ValueError, match=r"^(linear|SparseLinear): packed[.:]"):
                use(sk.PackedWeight(granularity, (40, 24), parts))


def test_from_dense_refuses_what_it_cannot_take() -> None:
    linear = nn.Linear(24, 40)
    with pytest.raises(TypeError, match=r"expected an nn\.Linear, got Conv2d"):
        sk.SparseLinear.from_dense(nn.Conv2d(3, 3, 1), sk.Block(1, 1), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give sparsity or mask, not both"):
        sk.SparseLinear.from_dense(linear, sk.Block(8, 1), 0.5, torch.ones(40, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match="larger than the weight"):
        sk.SparseLinear.from_dense(linear, sk.Block(41, 1), 0.5)
    with pytest.raises(TypeError, match="expected a granularity"):
        sk.SparseLinear.from_dense(linear, "16x1", 0.5)  # type: ignore[arg-type]
