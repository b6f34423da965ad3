"""``SparseConv2d`` keeps the contract of a module, and ``sk.conv2d`` that of a function."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import Granularity
from sparsekern.ops_conv import CONV_ACTIVATIONS
from sparsekern.plan import (
    Backend,
    ConvCall,
    ConvRequest,
    KernelRecord,
    Request,
    refusals,
    register_backend,
    select_conv,
)

GRANULARITIES = [
    sk.Block(16, 1), sk.Block(4, 4), sk.Block(3, 2), sk.NM(2, 4), sk.NM(2, 4, 8), sk.Unstructured(), sk.Channel(),
]  # fmt: skip
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)


def dense_layer(**options: object) -> nn.Conv2d:
    return nn.Conv2d(6, 16, (3, 2), **{"padding": 1, "groups": 2, **options})  # type: ignore[arg-type]


def sparse_layer(
    granularity: Granularity = GRANULARITIES[0], sparsity: float = 0.5, **options: object
) -> sk.SparseConv2d:
    return sk.SparseConv2d.from_dense(dense_layer(**options), granularity, granularity.implied_sparsity or sparsity)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 7, 5)


# ---- values --------------------------------------------------------------------------------------


@each_granularity
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_masked_dense_layer(granularity: Granularity, bias: bool, isa: str) -> None:
    conv, x = dense_layer(bias=bias), images()
    mask = sk.make_mask(conv.weight, granularity, granularity.implied_sparsity or 0.5)
    dense = copy.deepcopy(conv)
    dense.weight.data *= mask
    for layer in (
        sk.SparseConv2d.from_dense(conv, granularity, 0.5),
        sk.SparseConv2d.from_dense(conv, granularity, mask=mask),
        sk.SparseConv2d.from_dense(dense, granularity),
    ):
        torch.testing.assert_close(layer(x), dense(x))
        torch.testing.assert_close(layer(x[0]), dense(x[0]))
        torch.testing.assert_close(sk.conv2d(x, layer.packed, layer.bias, padding=1, groups=2), dense(x))
        assert torch.equal(layer.weight, dense.weight) and torch.equal(layer.to_dense().weight, dense.weight)
        assert (layer.bias is None) == (not bias)
    assert not torch.equal(conv.weight, dense.weight), "from_dense changed the dense layer"


@pytest.mark.parametrize("activation", [None, *CONV_ACTIVATIONS])
@each_granularity
def test_activations_are_those_of_torch(granularity: Granularity, activation: str | None, isa: str) -> None:
    plain, x = sparse_layer(granularity), 4 * images()
    layer = sk.SparseConv2d(plain.packed, plain.bias, padding=1, groups=2, activation=activation)
    y = nn.functional.conv2d(x, plain.weight, plain.bias, padding=1, groups=2)
    expected = y if activation in (None, "none") else getattr(nn.functional, activation)(y)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(sk.conv2d(x, layer.packed, layer.bias, 1, 1, 1, 2, activation), expected)
    torch.testing.assert_close(layer.to_dense()(x), expected)


@each_granularity
def test_a_weight_with_nothing_kept_is_its_bias(granularity: Granularity) -> None:
    conv = dense_layer()
    layer = sk.SparseConv2d.from_dense(conv, granularity, mask=torch.zeros_like(conv.weight, dtype=torch.bool))
    y = layer(images())
    assert torch.equal(y, layer.bias[:, None, None].expand_as(y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@each_granularity
def test_other_dtypes(granularity: Granularity, dtype: torch.dtype) -> None:
    layer, x = sparse_layer(granularity).to(dtype), images().to(dtype)
    assert layer(x).dtype == dtype
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_autocast_casts_the_input_to_the_weight() -> None:
    layer, x = sparse_layer(), images()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), sparse(layer, x))
        assert layer(x.bfloat16()).dtype == torch.float32
    with pytest.raises(RuntimeError, match=r"expected an input of torch\.float32"):
        layer(x.bfloat16())


def sparse(layer: sk.SparseConv2d, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return layer(x)


# ---- what nn.Conv2d has and reads ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": (1, 0), "dilation": (2, 1)},
        {"padding": "same", "dilation": 2, "groups": 3, "bias": False},
        {"padding": "valid", "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_attributes_are_those_of_the_dense_layer(options: dict[str, object]) -> None:
    conv = nn.Conv2d(6, 12, (3, 2), **options)  # type: ignore[arg-type]
    layer = sk.SparseConv2d.from_dense(conv, sk.Block(4, 1), 0.5)
    back = layer.to_dense()
    assert type(back) is nn.Conv2d
    for name in (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    ):  # fmt: skip
        assert getattr(layer, name) == getattr(conv, name) == getattr(back, name), name
    assert layer.weight.shape == conv.weight.shape and layer.weight.dtype == conv.weight.dtype
    x = images()
    torch.testing.assert_close(layer(x), back(x))


def test_train_eval_and_printing() -> None:
    conv = nn.Conv2d(6, 16, 3, padding="same").eval()
    conv.bias.requires_grad_(False)
    layer = sk.SparseConv2d.from_dense(conv, sk.Block(16, 1), 0.5)
    assert not layer.training and not layer.bias.requires_grad
    assert layer.train().training and layer.to_dense().training and not layer.to_dense().bias.requires_grad
    shape = "6, 16, kernel_size=(3, 3), stride=(1, 1)"
    assert repr(layer) == f"SparseConv2d({shape}, padding=same, bias=True, granularity=16x1, density=0.5)"
    grouped = sk.SparseConv2d(layer.packed, None, 2, 1, 3, 2, "reflect", "relu6")
    assert repr(grouped) == (
        "SparseConv2d(12, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(3, 3), groups=2, "
        "padding_mode=reflect, bias=False, granularity=16x1, density=0.5, activation=relu6)"
    )


def test_what_the_constructor_refuses() -> None:
    packed = sparse_layer(sk.Block(4, 1)).packed
    for options, error, text in (
        ({"groups": 3}, ValueError, "expected groups > 0 that divide the 16 outputs, got 3"),
        ({"groups": 0}, ValueError, "expected groups > 0"),
        ({"padding": "full"}, ValueError, "expected padding to be one of same, valid, got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, "expected a stride of 1 with padding 'same'"),
        ({"padding_mode": "mirror"}, ValueError, "expected padding_mode to be one of zeros, reflect"),
        ({"activation": "tanh"}, ValueError, "expected an activation of none, relu"),
        ({"stride": 1.5}, TypeError, "expected integers as stride, got 1.5"),
        ({"stride": (1, 1, 1)}, RuntimeError, "expected one or two integers as stride"),
        ({"stride": 0}, RuntimeError, "expected two integers >= 1 as stride"),
        ({"padding": -1}, RuntimeError, "expected two integers >= 0 as padding"),
        ({"bias": torch.zeros(6)}, RuntimeError, r"expected a bias of shape \[16\], got \[6\]"),
        ({"bias": torch.zeros(16).double()}, RuntimeError, "expected a bias of torch.float32"),
    ):
        with pytest.raises(error, match=rf"^stem: {text}"):
            sk.SparseConv2d(packed, name="stem", **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a PackedWeight, got Parameter"):
        sk.SparseConv2d(dense_layer().weight)  # type: ignore[arg-type]
    matrix = sk.pack(torch.randn(16, 18), sk.Block(4, 1))
    for use in (lambda: sk.SparseConv2d(matrix), lambda: sk.conv2d(images(), matrix)):
        with pytest.raises(
            ValueError, match=r"expected a weight \[out, in / groups, kh, kw\], got a matrix, \[16, 18\]"
        ):
            use()


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


def test_from_dense_refuses_a_layer_that_is_more_than_a_convolution() -> None:
    hooked = dense_layer()
    hooked.register_forward_hook(lambda *args: None)
    for layer, text in (
        (Standardised(6, 16, 3), "Standardised has a _conv_forward of its own"),
        (nn.LazyConv2d(16, 3), "is not initialised yet"),
        (nn.utils.parametrizations.weight_norm(dense_layer()), "has a parametrization"),
        (hooked, "has hooks"),
    ):
        with pytest.raises(ValueError, match=rf"^SparseConv2d\.from_dense: expected a plain nn\.Conv2d, .*{text}"):
            sk.SparseConv2d.from_dense(layer, sk.Block(8, 1), 0.5)
    for other in (nn.Linear(4, 4), nn.ConvTranspose2d(6, 16, 3), nn.Conv1d(6, 16, 3)):
        with pytest.raises(TypeError, match=r"^SparseConv2d\.from_dense: expected an nn\.Conv2d, got"):
            sk.SparseConv2d.from_dense(other, sk.Block(8, 1), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give sparsity or mask, not both"):
        sk.SparseConv2d.from_dense(dense_layer(), sk.Block(8, 1), 0.5, torch.ones(16, 3, 3, 2, dtype=torch.bool))


# ---- a module like any other ---------------------------------------------------------------------


@each_granularity
def test_state_dict_round_trip_with_another_number_of_blocks(granularity: Granularity) -> None:
    source, target, x = sparse_layer(granularity, 0.3), sparse_layer(granularity, 0.8), images()
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    keys = target.load_state_dict(torch.load(buffer))
    assert not keys.missing_keys and not keys.unexpected_keys
    assert torch.equal(source(x), target(x)) and torch.equal(source.weight, target.weight)
    assert list(source.state_dict()) == ["bias", *granularity.part_names]


def test_a_tampered_state_dict_is_refused_and_changes_nothing() -> None:
    layer, x = nn.Sequential(sparse_layer(sk.Block(8, 1))), images()
    before, y = copy.deepcopy(layer.state_dict()), layer(x)
    for name, change in (
        ("0.columns", lambda t: torch.full_like(t, 255)),
        ("0.offsets", lambda t: t + 1),
        ("0.values", lambda t: t * float("nan")),
    ):
        with pytest.raises(ValueError, match=r"^0[.:]"):
            layer.load_state_dict({**before, name: change(before[name])})
        assert torch.equal(layer(x), y)


@each_granularity
def test_copies_are_equal_and_independent(granularity: Granularity) -> None:
    layer, x = sparse_layer(granularity, padding_mode="replicate"), images()
    layer.name, y = "stem", layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False),
    ):  # fmt: skip
        assert torch.equal(twin(x), y) and twin.name == "stem" and twin.granularity == granularity
        twin.values.zero_()
        assert torch.equal(layer(x), y)


def test_casts_moves_meta_and_back() -> None:
    layer, x = sparse_layer(), images()
    y, columns, state = layer(x), layer.columns.clone(), copy.deepcopy(layer.state_dict())
    assert layer.double()(x.double()).dtype == torch.float64 and torch.equal(layer.columns, columns)
    torch.testing.assert_close(layer.float()(x), y)
    layer.to("meta")
    assert layer(x.to("meta")).shape == y.shape
    layer.to_empty(device="cpu").load_state_dict(state)
    torch.testing.assert_close(layer(x), y)


@each_granularity
def test_a_model_in_channels_last_keeps_packed_tensors_as_they_are(granularity: Granularity) -> None:
    linear = sk.SparseLinear.from_dense(nn.Linear(32, 32), granularity, granularity.implied_sparsity or 0.5)
    model, x = nn.ModuleList([sparse_layer(granularity), linear]), images()
    y, parts = model[0](x), [tensor for layer in model for tensor in layer.buffers()]
    for layer in model:
        layer.values.requires_grad_()
    model.to(memory_format=torch.channels_last)
    assert all(before is after for before, after in zip(parts, model.buffers(), strict=True))
    model.double().to(memory_format=torch.channels_last)
    for layer in model:
        layer.packed.verify()
        assert layer.values.is_leaf and layer.values.requires_grad
    torch.testing.assert_close(model.float()[0](x), y)


def test_back_to_dense_draws_no_random_numbers_and_keeps_a_frozen_weight_frozen() -> None:
    dense = dense_layer()
    for frozen in (True, False):
        dense.weight.requires_grad_(not frozen)
        layer = pickle.loads(pickle.dumps(sk.SparseConv2d.from_dense(dense, sk.Block(8, 1), 0.5)))
        state = torch.get_rng_state()
        assert layer.to_dense().weight.requires_grad != frozen
        assert torch.equal(torch.get_rng_state(), state)


# ---- gradients -----------------------------------------------------------------------------------


@each_granularity
@pytest.mark.parametrize("activation", CONV_ACTIVATIONS)
def test_gradcheck(granularity: Granularity, activation: str) -> None:
    torch.manual_seed(1)
    plain = sparse_layer(granularity, stride=2, padding=2).double()
    bias = torch.randn(16, dtype=torch.float64, requires_grad=True)
    layer = sk.SparseConv2d(plain.packed, bias, 2, 2, 1, 2, activation=activation)
    packed = layer.packed
    values = packed.values.detach().clone().requires_grad_()
    x = torch.randn(1, 6, 5, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        parts = {**packed.parts, granularity.part_names[0]: values}
        twin = sk.PackedWeight(granularity, packed.shape, parts, packed.kernel, verified=True)
        return sk.conv2d(x, twin, bias, 2, 2, 1, 2, activation)

    assert torch.autograd.gradcheck(run, (x, values, bias), fast_mode=True)


@each_granularity
def test_training_moves_what_is_kept_and_nothing_else(granularity: Granularity) -> None:
    layer = sparse_layer(granularity)
    layer.values.requires_grad_()
    ones = {**layer.packed.parts, granularity.part_names[0]: torch.ones_like(layer.values)}
    stored = granularity.unpack(ones, layer.shape) != 0
    before = layer.packed.to_matrix().detach().clone()
    optimizer = torch.optim.SGD([layer.values, layer.bias], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(images()).square().mean().backward()
        optimizer.step()
    after = layer.packed.to_matrix().detach()
    assert not after[~stored].any() and (after != before)[stored].float().mean() > 0.9
    layer.packed.verify()


@pytest.mark.parametrize("batch", [0, 2])
def test_gradients_are_those_of_the_dense_layer(batch: int) -> None:
    layer = sparse_layer(sk.Block(4, 1), padding="same", padding_mode="reflect")
    dense, x = layer.to_dense(), images(batch)
    layer.values.requires_grad_()
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    layer(found).square().sum().backward()
    dense(expected).square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    kept = layer.granularity.gather(dense.weight.grad.permute(0, 2, 3, 1).flatten(1), layer.packed.parts)
    torch.testing.assert_close(layer.values.grad, kept)


# ---- compiling and exporting ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"padding": "same"}, {"padding_mode": "circular"}], ids=str)
def test_compiles_whole_for_any_size(options: dict[str, object]) -> None:
    torch.compiler.reset()
    layer = sparse_layer(sk.Block(4, 1), **options)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 6, 9, 8), (3, 6, 7, 7), (1, 6, 12, 9)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(size).to(memory_format=layout).requires_grad_()
            y, expected = compiled(x), layer(x)
            torch.testing.assert_close(y, expected)
            assert y.stride() == expected.stride()
            torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x))
    torch.compiler.reset()


@pytest.mark.slow
def test_inductor_agrees() -> None:
    torch.compiler.reset()
    model = nn.Sequential(sparse_layer(sk.Block(4, 1)), nn.ReLU(), nn.Conv2d(16, 6, 1)).eval()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for x in (images(), images().to(memory_format=torch.channels_last)):
            torch.testing.assert_close(compiled(x), model(x))
    torch.compiler.reset()


@each_granularity
def test_exports_with_open_sizes(granularity: Granularity) -> None:
    layer = sparse_layer(granularity)
    sizes = {dim: torch.export.Dim.AUTO for dim in (0, 2, 3)}
    program = torch.export.export(layer, (images(),), dynamic_shapes=(sizes,))
    x = torch.randn(5, 6, 11, 8)
    torch.testing.assert_close(program.module()(x), layer(x))


# ---- back ends -----------------------------------------------------------------------------------


class OneByOne(Backend):
    """Takes 1x1 kernels and counts what it does."""

    name = "one_by_one"
    calls = 0

    def kernels(self) -> list[KernelRecord]:
        return []

    def refusal(self, request: Request) -> str | None:
        return "no products"

    def kernel_name(self, request: Request, tokens: int) -> str:
        raise NotImplementedError

    def linear(self, *_: object) -> Tensor:
        raise NotImplementedError

    def conv_refusal(self, request: ConvRequest) -> str | None:
        return None if request.shape[2:] == (1, 1) and request.groups == 1 else "only 1x1"

    def conv_kernel_name(self, request: ConvRequest, call: ConvCall | None = None) -> str:
        return "one_by_one"

    def conv2d(self, x, granularity, geometry, tensors, bias, activation):  # type: ignore[no-untyped-def]
        self.calls += 1
        parts = dict(zip(granularity.part_names, tensors, strict=True))
        dense = granularity.unpack(parts, geometry.shape[:2])[..., None, None]
        return nn.functional.conv2d(x, dense, bias, *geometry[1:])


def test_a_back_end_may_take_some_convolutions() -> None:
    backend = OneByOne()
    register_backend(backend, first=True)
    small = sk.SparseConv2d.from_dense(nn.Conv2d(8, 16, 1, stride=2), sk.Block(4, 1), 0.5)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    torch.testing.assert_close(small(x), small.to_dense()(x))
    assert backend.calls == 1
    small(x).sum().backward()
    assert x.grad is not None, "the gradients are the reference's"
    wide = sparse_layer()
    wide(images())
    assert backend.calls == 2
    request = ConvRequest(wide.granularity, (16, 3, 3, 2), 2, torch.float32, "cpu")
    assert refusals(request)["one_by_one"] == "only 1x1"
    assert select_conv(ConvRequest(wide.granularity, (16, 3, 1, 1), 1, torch.float32, "cpu")) is backend
