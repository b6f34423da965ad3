"""Gradients are those of the dense layer, at the kept places."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparsekern as sk
from sparsekern.layouts import Granularity
from sparsekern.plan import Backend, KernelRecord, Request, register_backend

GRANULARITIES = [
    sk.Block(16, 1), sk.Block(8, 1), sk.Block(4, 4), sk.Block(3, 2), sk.NM(2, 4), sk.NM(2, 4, 8), sk.Unstructured(),
    sk.Channel(),
]  # fmt: skip
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
each_activation = pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])


def pair(granularity: Granularity, activation: str | None) -> tuple[sk.SparseLinear, nn.Module]:
    """A sparse layer whose values want gradients, and the dense layer with the same outputs."""
    packed = sk.SparseLinear.from_dense(nn.Linear(24, 40), granularity, 0.5).packed
    layer = sk.SparseLinear(packed, nn.Parameter(torch.randn(40)), activation)
    layer.values.requires_grad_()
    return layer, copy.deepcopy(layer).to_dense()


def linear_of(dense: nn.Module) -> nn.Linear:
    return dense if isinstance(dense, nn.Linear) else dense[0]


@each_granularity
@each_activation
@pytest.mark.parametrize("leading", [(5,), (2, 3), (0,)], ids=str)
def test_gradients(granularity: Granularity, activation: str | None, leading: tuple[int, ...]) -> None:
    layer, dense = pair(granularity, activation)
    x = torch.randn(*leading, 24, requires_grad=True)
    x_dense = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(x_dense)
    grad = torch.randn(expected.shape)
    y.backward(grad)
    expected.backward(grad)
    weight, bias = linear_of(dense).weight.grad, linear_of(dense).bias.grad
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, x_dense.grad)
    torch.testing.assert_close(layer.bias.grad, bias)
    torch.testing.assert_close(layer.values.grad, granularity.gather(weight, layer.packed.parts))


@each_granularity
def test_infinite_and_undefined_numbers_pass_a_relu_as_in_torch(granularity: Granularity) -> None:
    layer, _ = pair(granularity, "relu")
    infinite = torch.full((8, 40), float("inf"))
    special = torch.randn(8, 24)
    special[3, 5] = float("nan")
    for x, grad in ((torch.randn(8, 24), infinite), (special, torch.randn(8, 40))):
        layer.zero_grad()
        y = layer(x)  # which is undefined only where a kept weight meets the undefined input
        y.backward(grad)
        torch.testing.assert_close(layer.bias.grad, torch.where(y <= 0, 0, grad).sum(0))


@each_granularity
@each_activation
def test_gradients_by_differences(granularity: Granularity, activation: str | None) -> None:
    layer, _ = pair(granularity, activation)
    layer.double()
    tensors = layer.packed.tensors
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    values = tensors[0].detach().requires_grad_()
    bias = layer.bias.detach().requires_grad_()
    stored = granularity.gather(torch.ones(40, 24), layer.packed.parts) != 0  # not the padding

    def f(x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        shape = (granularity.spec, 40, 24, activation or "none")
        return torch.ops.sparsekern.linear(x, [values * stored, *tensors[1:]], bias, *shape)

    assert torch.autograd.gradcheck(f, (x, values, bias), fast_mode=True)


@each_granularity
def test_only_what_wants_a_gradient_gets_one(granularity: Granularity) -> None:
    layer, _ = pair(granularity, "gelu")
    layer.values.requires_grad_(False)
    layer.bias.requires_grad_(False)
    assert not layer(torch.randn(2, 24)).requires_grad
    x = torch.randn(2, 24, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.values.grad is None and layer.bias.grad is None
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert layer(x).is_inference()


def test_a_sparse_layer_trains() -> None:
    torch.manual_seed(1)
    layer = sk.SparseLinear.from_dense(nn.Linear(24, 40), sk.Block(8, 1), 0.5)
    layer.values.requires_grad_()
    x, target = torch.randn(64, 24), torch.randn(64, 40)
    columns, losses = layer.columns.clone(), []
    optimizer = torch.optim.SGD([layer.values, layer.bias], lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(layer.columns, columns)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@each_granularity
def test_training_leaves_padding_and_pruned_weights_at_zero(granularity: Granularity) -> None:
    """Sides that no block divides, and an optimizer that moves whatever has a gradient."""
    torch.manual_seed(2)
    linear = nn.Linear(27, 43)
    mask = sk.make_mask(linear.weight, granularity, None if granularity.implied_sparsity is not None else 0.5)
    layer = sk.SparseLinear.from_dense(linear, granularity, mask=mask)
    layer.values.requires_grad_()
    kept = layer.granularity.unpack(
        {**layer.packed.parts, "values": torch.ones_like(layer.values)}, (43, 27)
    ).bool()  # n:m keeps n places of every group, whatever the mask
    optimizer = torch.optim.AdamW([layer.values, layer.bias], lr=0.01, weight_decay=0.1)
    before = layer.packed.to_dense().detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(9, 27)).square().sum().backward()
        optimizer.step()
    after = layer.packed.to_dense().detach()
    assert not after[~kept].any() and (after != before)[kept].float().mean() > 0.9
    layer.packed.verify()
    assert torch.equal(granularity.gather(after, layer.packed.parts), layer.values.detach())


def test_a_frozen_layer_has_no_gradient_of_its_values() -> None:
    layer = sk.SparseLinear.from_dense(nn.Linear(24, 40), sk.Block(8, 1), 0.5)
    y = layer(torch.randn(2, 24)).sum()
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(y, layer.values)
    layer(torch.randn(2, 24)).sum().backward()
    assert layer.values.grad is None and layer.bias.grad is not None


@pytest.mark.needs_native
@pytest.mark.parametrize(
    "granularity", [sk.Block(16, 16), sk.Block(3, 2), sk.NM(2, 4), sk.NM(2, 4, 8), sk.Unstructured()],
    ids=lambda g: g.label,
)  # fmt: skip
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_no_dense_weight_is_made_for_a_gradient(
    granularity: Granularity, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, dense = pair(granularity, "gelu")
    x = torch.randn(5, 24, requires_grad=True)
    expected = torch.autograd.grad(dense(x).square().sum(), x)

    def unpacked(*_: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(type(granularity), "unpack", unpacked)
    monkeypatch.setattr(type(granularity), "gather", unpacked)
    run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    got = torch.autograd.grad(run(x).square().sum(), (x, layer.values))
    torch.testing.assert_close(got[0], expected[0])


@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Unstructured()], ids=lambda g: g.label)
def test_second_derivatives_are_an_error(granularity: Granularity) -> None:
    layer, _ = pair(granularity, None)
    x = torch.randn(2, 24, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives; call densify_ first"):
        grad.sum().backward()


@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Unstructured()], ids=lambda g: g.label)
@pytest.mark.parametrize("grad_mode", [True, False])
def test_forward_mode_is_an_error_and_no_zero(granularity: Granularity, grad_mode: bool) -> None:
    layer, _ = pair(granularity, None)
    x = torch.randn(2, 24)
    with torch.set_grad_enabled(grad_mode):
        with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
            layer(torch.autograd.forward_ad.make_dual(x, x))
        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.jvp(layer, (x,), (x,))


def test_gradients_do_not_depend_on_the_back_end() -> None:
    class Plain(Backend):
        name = "plain"

        def kernels(self) -> list[KernelRecord]:
            return []

        def refusal(self, request: Request) -> str | None:
            return None

        def kernel_name(self, request: Request, tokens: int) -> str:
            return "plain"

        def linear(self, x, granularity, shape, tensors, bias, activation):  # type: ignore[no-untyped-def]
            parts = dict(zip(granularity.part_names, tensors, strict=True))
            return torch.relu(nn.functional.linear(x, granularity.unpack(parts, shape), bias))

    layer, dense = pair(sk.Block(8, 1), "relu")
    register_backend(Plain(), first=True)
    layer.float()
    assert layer._backend.name == "plain"
    x = torch.randn(5, 24)
    layer(x).sum().backward()
    dense(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, linear_of(dense).bias.grad)
    expected = layer.granularity.gather(linear_of(dense).weight.grad, layer.packed.parts)
    torch.testing.assert_close(layer.values.grad, expected)


@each_granularity
def test_bfloat16_gradients_are_the_float32_ones_rounded(granularity: Granularity) -> None:
    layer, _ = pair(granularity, None)
    layer.bfloat16()
    wide = copy.deepcopy(layer).float()
    for each in (layer, wide):
        each.values.requires_grad_()
    x = torch.randn(7, 24).bfloat16().requires_grad_()
    x_wide = x.detach().float().requires_grad_()
    grad = torch.randn(7, 40).bfloat16()
    layer(x).backward(grad)
    wide(x_wide).backward(grad.float())
    torch.testing.assert_close(x.grad, x_wide.grad.bfloat16())
    torch.testing.assert_close(layer.values.grad, wide.values.grad.bfloat16())


@pytest.mark.parametrize("within", ["forward", "backward"])
def test_a_mode_that_sees_only_one_of_the_passes(within: str) -> None:
    """A gelu's product is computed again in the backward pass, below modes of its own."""
    layer, _ = pair(sk.Block(8, 1), None)
    x = torch.randn(5, 24, requires_grad=True)
    numbers = (40, 24, "gelu", "")
    grads = {}
    for mode in (within, None):
        with FlopCounterMode(display=False) if mode == "forward" else nullcontext() as forward:
            y = torch.ops.sparsekern.block_linear(x, *layer.packed.parts.values(), None, *numbers)
        with FlopCounterMode(display=False) if mode == "backward" else nullcontext() as backward:
            (grads[mode],) = torch.autograd.grad(y.sum(), x)
        counter = forward or backward
        assert counter is None or counter.get_total_flops() > 0
    torch.testing.assert_close(grads[within], grads[None])
