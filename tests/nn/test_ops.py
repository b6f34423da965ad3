"""The torch ops: schema, fake and autograd agree, for every granularity and every kernel that runs here."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import sparsekern as sk
from sparsekern.layouts import Granularity, PackedWeight

NATIVE = [r for r in sk.kernels() if r.op == "block_linear" and r.runs_here]


def packed_as(granularity: Granularity, dtype: torch.dtype = torch.float32) -> PackedWeight:
    weight = torch.randn(40, 24).to(dtype)
    return sk.pack(weight, granularity, sk.make_mask(weight, granularity, 0.5))


def block_arguments(packed: PackedWeight, x: Tensor, kernel: str = "", activation: str = "gelu") -> tuple[object, ...]:
    bias = torch.randn(40, dtype=x.dtype, requires_grad=True)
    return x, *packed.tensors, bias, 40, 24, activation, kernel


@pytest.mark.parametrize(
    "granularity",
    [sk.Block(16, 1), sk.Block(3, 2), sk.NM(2, 4), sk.Unstructured(), sk.Channel()],
    ids=lambda g: g.label,
)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_linear_passes_opcheck(granularity: Granularity, activation: str) -> None:
    packed = packed_as(granularity)
    packed.values.requires_grad_()
    for leading in ((5,), (2, 3), (0,)):
        x, bias = torch.randn(*leading, 24, requires_grad=True), torch.randn(40, requires_grad=True)
        arguments = (x, packed.tensors, bias, granularity.spec, 40, 24, activation)
        torch.library.opcheck(torch.ops.sparsekern.linear.default, arguments)


@pytest.mark.parametrize("rows, cols", [(16, 1), (32, 2), (8, 1), (4, 4)])
def test_block_linear_passes_opcheck(rows: int, cols: int) -> None:
    packed = packed_as(sk.Block(rows, cols))
    packed.values.requires_grad_()
    for x in (torch.randn(5, 24, requires_grad=True), torch.randn(2, 3, 24), torch.randn(1, 24), torch.randn(0, 24)):
        torch.library.opcheck(torch.ops.sparsekern.block_linear.default, block_arguments(packed, x))


@pytest.mark.parametrize("pattern", [sk.NM(2, 4), sk.NM(4, 8)], ids=lambda g: g.label)
def test_nm_linear_passes_opcheck(pattern: sk.NM) -> None:
    packed = packed_as(pattern)
    packed.values.requires_grad_()
    bias = torch.randn(40, requires_grad=True)
    for x in (torch.randn(5, 24, requires_grad=True), torch.randn(2, 3, 24), torch.randn(1, 24), torch.randn(0, 24)):
        arguments = (x, *packed.tensors, bias, pattern.n, pattern.m, 40, 24, "silu", "")
        torch.library.opcheck(torch.ops.sparsekern.nm_linear.default, arguments)


@pytest.mark.parametrize("op", ["linear_grad_input", "linear_grad_values"])
def test_the_ops_of_the_backward_pass_opcheck(op: str) -> None:
    packed = packed_as(sk.Block(8, 1))
    grad, x = torch.randn(2, 3, 40), torch.randn(2, 3, 24)
    inputs = (grad, x) if op == "linear_grad_values" else (grad,)
    torch.library.opcheck(
        getattr(torch.ops.sparsekern, op).default, (*inputs, packed.tensors, packed.granularity.spec, 40, 24)
    )


@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Block(3, 2), sk.NM(2, 4)], ids=lambda g: g.label)
@pytest.mark.parametrize("of", ["input", "values"])
def test_the_gradients_of_each_format_opcheck(granularity: Granularity, of: str) -> None:
    packed = packed_as(granularity)
    name, numbers = ("nm_linear", (2, 4)) if isinstance(granularity, sk.NM) else ("block_linear", ())
    op = getattr(torch.ops.sparsekern, f"{name}_grad_{of}").default
    for leading in ((2, 3), (1,), (0,)):
        grad, x = torch.randn(*leading, 40), torch.randn(*leading, 24)
        inputs = (grad, x) if of == "values" else (grad,)
        torch.library.opcheck(op, (*inputs, *packed.tensors, *numbers, 40, 24, ""))


@pytest.mark.parametrize(
    "granularity",
    [sk.Block(16, 1), sk.Block(3, 2), sk.NM(2, 4), sk.Unstructured(), sk.Channel()],
    ids=lambda g: g.label,
)
def test_autocast_changes_no_bit_of_what_an_op_returns(granularity: Granularity) -> None:
    packed, x, bias = packed_as(granularity), torch.randn(5, 24), torch.randn(40)
    shape = (granularity.spec, 40, 24)

    def results() -> list[Tensor]:
        values = packed.values.detach().requires_grad_()
        weight, own_x = [values, *packed.tensors[1:]], x.clone().requires_grad_()
        y = torch.ops.sparsekern.linear(own_x, weight, bias, *shape, "gelu")
        # The backward too, whose own ops would be called inside autocast.
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (own_x, values))]

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        found = results()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Unstructured()], ids=lambda g: g.label)
@pytest.mark.parametrize("trained", [True, False])
def test_tracing_and_vmap_find_the_op(granularity: Granularity, trained: bool) -> None:
    # Called eagerly a layer goes past the op's own autograd, which these must not notice.
    bias = nn.Parameter(torch.randn(40), requires_grad=trained)
    layer, x = sk.SparseLinear(packed_as(granularity), bias), torch.randn(5, 24)
    y = layer(x)
    assert y.requires_grad == trained
    traced = make_fx(layer)(x)
    assert any(str(node.target).startswith("sparsekern.") for node in traced.graph.nodes)
    torch.testing.assert_close(traced(x), y)
    if granularity == sk.Block(16, 1) and not trained:
        torch.testing.assert_close(torch.vmap(layer)(x), y)


@pytest.mark.needs_native
def test_a_kernel_asked_for_by_name_runs_or_is_an_error() -> None:
    packed, x = packed_as(sk.Block(16, 1)), torch.randn(70, 24)
    ran = []
    for name in [record.name for record in NATIVE]:
        try:
            y = torch.ops.sparsekern.block_linear(x, *packed.tensors, None, 40, 24, "none", name)
        except RuntimeError as error:
            assert name in str(error) and "does not take blocks of 16 rows" in str(error)
        else:
            torch.testing.assert_close(y, x @ packed.to_dense().T)
            ran.append(name)
    assert ran
    with pytest.raises(RuntimeError, match="no kernel named 'no_such_kernel' for blocks of 16 rows"):
        torch.ops.sparsekern.block_linear(x, *packed.tensors, None, 40, 24, "none", "no_such_kernel")
