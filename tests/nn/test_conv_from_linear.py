"""``conv_from_linear``: at each window the convolution gives what the fully connected layer gives to it, flattened."""

import copy

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import Granularity

SHAPE = (8, 3, 2)  # channels, height, width: all differ, so that no two can be mixed up
GRANULARITIES = [
    sk.Block(16, 1), sk.Block(4, 4), sk.NM(2, 4), sk.NM(2, 4, 8), sk.Unstructured(), sk.Channel(),
]  # fmt: skip
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
ORDERS = {
    "nchw": (0, 1, 2, 3),
    "nhwc": (0, 2, 3, 1),
    "nwhc": (0, 3, 2, 1),
    "ncwh": (0, 1, 3, 2),
    "nhcw": (0, 2, 1, 3),
    "nwch": (0, 3, 1, 2),
}
each_order = pytest.mark.parametrize("flatten", ORDERS)


def sparse_layer(granularity: Granularity, **options: object) -> sk.SparseLinear:
    return sk.SparseLinear.from_dense(nn.Linear(48, 20, **options), granularity, granularity.implied_sparsity or 0.5)


def flat(x: Tensor, flatten: str) -> Tensor:
    return x.permute(ORDERS[flatten]).flatten(1)


# ---- values --------------------------------------------------------------------------------------


@each_order
@pytest.mark.parametrize("bias", [True, False])
def test_dense(flatten: str, bias: bool) -> None:
    linear, x = nn.Linear(48, 20, bias=bias), torch.randn(5, *SHAPE)
    conv = sk.conv_from_linear(linear, SHAPE, flatten)
    assert type(conv) is nn.Conv2d and conv.weight.shape == (20, 8, 3, 2) and (conv.bias is not None) == bias
    torch.testing.assert_close(conv(x)[:, :, 0, 0], linear(flat(x, flatten)))
    assert torch.equal(sk.conv_from_linear(linear, SHAPE, flatten.removeprefix("n")).weight, conv.weight)
    # The kernel is the weight itself, its features seen as an image.
    assert torch.equal(conv.weight.permute(ORDERS[flatten]).flatten(1), linear.weight)


@each_order
@each_granularity
@pytest.mark.parametrize("bias", [True, False])
def test_sparse(granularity: Granularity, flatten: str, bias: bool, isa: str) -> None:
    linear, x = sparse_layer(granularity, bias=bias), torch.randn(5, *SHAPE)
    conv = sk.conv_from_linear(linear, SHAPE, flatten)
    conv.packed.verify()
    assert type(conv) is sk.SparseConv2d and conv.kernel_size == (3, 2) and (conv.bias is not None) == bias
    torch.testing.assert_close(conv(x)[:, :, 0, 0], linear(flat(x, flatten)))
    assert torch.equal(conv.weight, sk.conv_from_linear(linear.to_dense(), SHAPE, flatten).weight)
    assert conv.packed.density == linear.packed.density


@pytest.mark.parametrize("sparse", [False, True])
def test_each_cell_is_the_layer_on_a_window(sparse: bool) -> None:
    linear: nn.Module = sparse_layer(sk.Block(4, 1)) if sparse else nn.Linear(48, 20)
    image = torch.randn(2, 8, 6, 7)
    y = sk.conv_from_linear(linear, SHAPE)(image)
    assert y.shape == (2, 20, 4, 6)
    for i in range(4):
        for j in range(6):
            window = image[:, :, i : i + 3, j : j + 2]
            torch.testing.assert_close(y[:, :, i, j], linear(window.flatten(1)))


@each_granularity
def test_a_map_of_one_pixel_changes_nothing_but_the_shape(granularity: Granularity) -> None:
    linear = sparse_layer(granularity)
    conv = sk.conv_from_linear(linear, (48, 1, 1))
    assert conv.granularity == granularity and conv.kernel_size == (1, 1)
    for name, part in conv.packed.parts.items():
        assert torch.equal(part, linear.packed.parts[name])
    dense = sk.conv_from_linear(nn.Linear(48, 20), (48, 1, 1))
    x = torch.randn(2, 48, 5, 5)
    assert dense.weight.stride() == nn.Conv2d(48, 20, 1).weight.stride() and dense(x).is_contiguous()


def test_granularities_stay_where_their_groups_do() -> None:
    for granularity in GRANULARITIES:
        linear = sparse_layer(granularity)
        for flatten in ("nhwc", "nwhc"):
            assert sk.conv_from_linear(linear, SHAPE, flatten).granularity == granularity
    torn = {g: sk.conv_from_linear(sparse_layer(g), SHAPE).granularity for g in GRANULARITIES}
    finer = {sk.Block(4, 4): sk.Block(4, 1), sk.NM(2, 4): sk.Unstructured(), sk.NM(2, 4, 8): sk.Block(8, 1)}
    assert torn == {granularity: finer.get(granularity, granularity) for granularity in GRANULARITIES}


# ---- what is carried over ------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_the_activation_is_fused_as_before(activation: str | None) -> None:
    plain = sparse_layer(sk.Block(4, 1))
    linear = sk.SparseLinear(plain.packed, plain.bias, activation, name="head.fc")
    conv, x = sk.conv_from_linear(linear, SHAPE), torch.randn(3, *SHAPE)
    assert conv.activation == linear.activation and conv.name == "head.fc"
    assert sk.conv_from_linear(plain, SHAPE).name == "SparseConv2d"
    torch.testing.assert_close(conv(x)[:, :, 0, 0], linear(x.flatten(1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(3, *SHAPE, dtype=dtype)
    for linear in (nn.Linear(48, 20), *map(sparse_layer, GRANULARITIES)):
        conv = sk.conv_from_linear(linear.to(dtype), SHAPE)
        assert conv.weight.dtype == conv.bias.dtype == dtype
        torch.testing.assert_close(conv(x)[:, :, 0, 0], linear(x.flatten(1)))


@pytest.mark.parametrize("trained", [True, False])
def test_training_flag_and_requires_grad(trained: bool) -> None:
    dense = nn.Linear(48, 20).train(trained)
    dense.weight.requires_grad_(trained)
    dense.bias.requires_grad_(not trained)
    sparse = sk.SparseLinear.from_dense(dense, sk.Block(4, 1), 0.5)
    sparse.values.requires_grad_(trained)
    for linear in (dense, sparse):
        conv = sk.conv_from_linear(linear, SHAPE)
        assert conv.training == trained and conv.bias.requires_grad != trained
        back = conv.to_dense() if linear is sparse else conv
        assert back.weight.requires_grad == trained
    assert conv.values.requires_grad == trained and conv.values.is_leaf


def test_the_layer_is_left_as_it_was_and_shares_nothing() -> None:
    state = torch.random.get_rng_state()
    for linear in (nn.Linear(48, 20), sparse_layer(sk.Block(4, 1)), sparse_layer(sk.NM(2, 4))):
        before = copy.deepcopy(linear.state_dict())
        for flatten in ("nchw", "nhwc"):
            torch.random.set_rng_state(state)
            conv = sk.conv_from_linear(linear, SHAPE, flatten)
            assert torch.equal(torch.random.get_rng_state(), state)
            for tensor in conv.state_dict().values():
                tensor.zero_()
        assert all(torch.equal(tensor, before[name]) for name, tensor in linear.state_dict().items())


def test_kept_weights_train_and_dropped_ones_stay_zero() -> None:
    linear = sparse_layer(sk.NM(2, 4))
    linear.values.requires_grad_()
    conv = sk.conv_from_linear(linear, SHAPE)
    zeros = conv.weight == 0
    optimizer = torch.optim.SGD([conv.values, conv.bias], lr=0.1)
    conv(torch.randn(2, 8, 5, 5)).square().sum().backward()
    before = conv.weight
    optimizer.step()
    assert not torch.equal(conv.weight, before) and not conv.weight[zeros].any()


def test_a_dense_layer_on_the_meta_device() -> None:
    conv = sk.conv_from_linear(nn.Linear(48, 20, device="meta"), SHAPE)
    assert conv.weight.device.type == "meta" and conv.weight.shape == (20, 8, 3, 2)


# ---- what is refused -----------------------------------------------------------------------------


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class DoubledSparse(sk.SparseLinear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("in_shape", "flatten", "error", "text"),
    [
        ((8, 3, 3), "nchw", ValueError, r"in_shape: .* to the 48 features .*, got 8 x 3 x 3 = 72; print"),
        ((8, 6), "nchw", ValueError, r"in_shape: expected the \(channels, height, width\) .*, got \(8, 6\)$"),
        ((1, 8, 3, 2), "nchw", ValueError, r"in_shape: .* got \(1, 8, 3, 2\); leave the batch out"),
        ((-8, -3, 2), "nchw", ValueError, r"in_shape: .* three integers >= 1, got \(-8, -3, 2\)"),
        ((8, 3, 2.0), "nchw", TypeError, r"in_shape: .* three integers, got \(8, 3, 2\.0\)"),
        (48, "nchw", TypeError, r"in_shape: .* three integers, got 48"),
        (SHAPE, "nhwd", ValueError, r"flatten: .* such as 'nchw' or 'nhwc': c, h and w once each, .* got 'nhwd'"),
        (SHAPE, "channels_last", ValueError, r"flatten: .* got 'channels_last'"),
        (SHAPE, "cnhw", ValueError, r"flatten: .* got 'cnhw'"),
        (SHAPE, "cch", ValueError, r"flatten: .* got 'cch'"),
        (SHAPE, None, TypeError, r"flatten: .* a string, got None"),
    ],
)  # fmt: skip
def test_wrong_shapes_and_orders(in_shape: object, flatten: str, error: type[Exception], text: str) -> None:
    for linear in (nn.Linear(48, 20), sparse_layer(sk.Block(4, 1))):
        with pytest.raises(error, match=f"^conv_from_linear: {text}"):
            sk.conv_from_linear(linear, in_shape, flatten)  # type: ignore[arg-type]


def test_layers_that_are_something_else_or_more() -> None:
    hooked, packed = nn.Linear(48, 20), sparse_layer(sk.Block(4, 1)).packed
    hooked.register_forward_hook(lambda *args: None)
    hooked_sparse = sparse_layer(sk.Block(4, 1))
    hooked_sparse.register_forward_pre_hook(lambda *args: None)
    for linear, text in (
        (hooked, "nn.Linear, .* has hooks"),
        (Doubled(48, 20), "nn.Linear, .* Doubled has a forward of its own"),
        (nn.LazyLinear(20), "nn.Linear, .* is not initialised yet"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(48, 20)), "nn.Linear, .* has a parametrization"),
        (hooked_sparse, "SparseLinear, .* has hooks"),
        (DoubledSparse(packed), "SparseLinear, .* DoubledSparse has a forward of its own"),
    ):
        with pytest.raises(ValueError, match=rf"^conv_from_linear: linear: expected a plain {text}"):
            sk.conv_from_linear(linear, SHAPE)
    for other in (nn.Conv2d(48, 20, 1), nn.Sequential(nn.Linear(48, 20)), packed, nn.Linear(48, 20).weight):
        kind = type(other).__name__
        with pytest.raises(TypeError, match=rf"^conv_from_linear: linear: expected .* SparseLinear, got {kind}; of a"):
            sk.conv_from_linear(other, SHAPE)  # type: ignore[arg-type]


def test_packed_weights_without_proper_values() -> None:
    broken = sparse_layer(sk.Block(4, 1))
    broken.values[0] = float("inf")
    for linear, text in (
        (broken, "the packed values hold NaN or infinity"),
        (sparse_layer(sk.Block(4, 1)).to("meta"), "is on the meta device, without values"),
    ):
        with pytest.raises(ValueError, match=f"^conv_from_linear: linear: {text}"):
            sk.conv_from_linear(linear, SHAPE)
