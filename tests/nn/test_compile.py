"""Compiling, exporting, packaging and distributing: what users do with a model after it became sparse."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.layouts import Granularity

GRANULARITIES = [sk.Block(16, 1), sk.Block(3, 2), sk.NM(2, 4), sk.Unstructured(), sk.Channel()]
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_of(granularity: Granularity) -> nn.Module:
    """Two sparse layers, a fused activation among them, in a model with something around them."""
    first = sk.SparseLinear.from_dense(nn.Linear(24, 48), granularity, 0.5)
    return nn.Sequential(
        nn.LayerNorm(24),
        sk.SparseLinear(first.packed, first.bias, "gelu"),
        sk.SparseLinear.from_dense(nn.Linear(48, 24), granularity, 0.5),
    )


@each_granularity
def test_compiles_as_one_graph(granularity: Granularity) -> None:
    model, x = model_of(granularity), torch.randn(5, 24)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for inputs in (x, torch.randn(2, 3, 24), torch.randn(1, 24)):
        torch.testing.assert_close(compiled(inputs), model(inputs))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_compiles_with_inductor_and_trains() -> None:
    model, x = model_of(sk.Block(16, 1)), torch.randn(5, 24, requires_grad=True)
    for layer in (model[1], model[2]):
        layer.values.requires_grad_()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    y, expected = compiled(x), eager(x.detach())
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert x.grad is not None and model[1].values.grad is not None
    for found, wanted in zip(model[1:], eager[1:], strict=True):
        torch.testing.assert_close(found.values.grad, wanted.values.grad)
        torch.testing.assert_close(found.bias.grad, wanted.bias.grad)


def test_compiles_with_dynamic_shapes() -> None:
    model = model_of(sk.Block(16, 1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 5, 17):
        x = torch.randn(2, tokens, 24, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, model(x))
        y.sum().backward()


def test_a_compiled_function_serves_several_granularities() -> None:
    # The back end and the layout are constants of a compiled graph; another weight must not get them.
    compiled = torch.compile(lambda x, packed: sk.linear(x, packed, None, "relu"), fullgraph=True, backend="eager")
    weight, x = torch.randn(48, 24), torch.randn(5, 24)
    for granularity in (
        sk.Block(16, 1),
        sk.Block(8, 1),
        sk.Block(7, 1),
        sk.Block(5, 3),
        sk.Unstructured(),
        sk.Channel(),
    ):
        packed = sk.pack(weight, granularity, sk.make_mask(weight, granularity, 0.5))
        torch.testing.assert_close(compiled(x, packed), torch.relu(x @ packed.to_dense().T))


def test_functions_with_gradients_compile() -> None:
    packed = sk.pack(torch.randn(48, 24), sk.Block(16, 1))
    compiled = torch.compile(lambda x: sk.linear(x, packed, None, "silu"), fullgraph=True, backend="aot_eager")
    x, twin = (torch.ones(3, 24, requires_grad=True) for _ in range(2))
    compiled(x).sum().backward()
    sk.linear(twin, packed, None, "silu").sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("strict", [False, True])
@each_granularity
def test_exports_and_comes_back(granularity: Granularity, strict: bool, tmp_path: Path) -> None:
    model, x = model_of(granularity).eval(), torch.randn(4, 24)
    tokens = torch.export.Dim("tokens", min=2, max=1000)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: tokens},), strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for inputs in (x, torch.randn(9, 24)):
        torch.testing.assert_close(again(inputs), model(inputs))


@pytest.mark.slow
def test_packages_with_aot_inductor(tmp_path: Path) -> None:
    model, x = model_of(sk.Block(16, 1)).eval(), torch.randn(4, 24)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), model(x))


@each_granularity
def test_runs_under_ddp(granularity: Granularity, process_group: None) -> None:
    # gloo sends every buffer before each forward pass, so their dtypes and strides must be ones it can send.
    model, x = model_of(granularity), torch.randn(5, 24)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        y = parallel(x)
        torch.testing.assert_close(y, expected)
        y.sum().backward()
    assert model[1].bias.grad is not None


def test_functional_call_sees_its_parameters() -> None:
    layer, x = sk.SparseLinear.from_dense(nn.Linear(24, 48), sk.Block(16, 1), 0.5), torch.randn(5, 24)
    y = torch.func.functional_call(layer, {"bias": torch.zeros(48), "values": layer.values * 2}, (x,))
    torch.testing.assert_close(y, 2 * x @ layer.weight.T)
