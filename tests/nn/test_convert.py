"""``sparsify_`` and ``densify_``: what is replaced, what stays and why, and that failing changes nothing."""

import copy
import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekern as sk
from sparsekern.nn import convert, trial
from sparsekern.plan import Timing

HALF = sk.Sparse(sk.Block(16, 1), 0.5)


class Net(nn.Module):
    """A small model with what can go wrong in a large one: dropout, statistics, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.norm = nn.BatchNorm1d(64)
        self.drop = nn.Dropout(0.5)
        self.twice = nn.Linear(64, 64)
        self.head = nn.Linear(64, 16, bias=False)
        self.unused = nn.Linear(32, 32)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        h = self.drop(self.norm(self.first(x)).relu())
        h = self.twice(self.twice(input=h).relu())
        return self.head(h[: len(h) // 2]) * scale


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, int], int, bool]]:
    """Replaces the stopwatch: a layer of n outputs takes n us dense, 32 us sparse. Lists what was timed."""
    timed = []

    def time_linear(dense: nn.Linear, sparse: sk.SparseLinear, tokens: int) -> Timing:
        timed.append((sparse.shape, tokens, sparse.bias is not None))
        return Timing(sparse.shape[0] * 1e-6, 32e-6, speedup=sparse.shape[0] / 32, spread=0.1, rounds=30)

    monkeypatch.setattr(trial, "time_linear", time_linear)
    return timed


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a failed call must leave alone, and the random states."""
    return {
        "modules": {
            name: (id(module), module.training) for name, module in model.named_modules(remove_duplicate=False)
        },
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)},
        "hooks": {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in model.named_modules()},
        "tensors": {name: None if t.is_meta else t.clone() for name, t in model.state_dict().items()},
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for kind in ("tensors", "torch"):
        torch.testing.assert_close(after.pop(kind), before.pop(kind), rtol=0, atol=0, equal_nan=True)
    assert after == before


# ---- what is replaced ----------------------------------------------------------------------------


def test_replaces_the_linear_layers_and_nothing_else() -> None:
    model, x = Net().eval(), torch.randn(8, 32)
    masks = {n: sk.make_mask(m.weight, HALF.granularity, 0.5) for n, m in model.named_modules() if type(m) is nn.Linear}
    expected = copy.deepcopy(model)
    for name, mask in masks.items():
        expected.get_submodule(name).weight.data *= mask
    report = sk.sparsify_(model, HALF)
    assert (
        {n for n, m in model.named_modules() if isinstance(m, sk.SparseLinear)}
        == set(masks)
        == {r.layer for r in report}
    )
    torch.testing.assert_close(model(x), expected(x))
    for row in report:
        assert row.sparse and row.density == 0.5 and row.granularity == "16x1" and row.kernel
        assert row.verdict.startswith(f"16x1, 50 %, {row.kernel}, ")
        assert row.verdict.endswith("not measured: pass example_inputs")
        assert model.get_submodule(row.layer).name == row.layer
    with pytest.raises(ValueError, match=r"^twice: expected an input \[..., 64\], got \[8, 63\]"):
        model.twice(torch.randn(8, 63))


def test_bias_parameters_flags_and_modes_are_kept() -> None:
    model = Net()
    model.twice.eval()
    model.first.bias.requires_grad_(False)
    first, twice = model.first.bias, model.twice.bias
    sk.sparsify_(model, HALF)
    assert model.first.bias is first and model.twice.bias is twice and model.head.bias is None
    assert not model.first.bias.requires_grad and model.twice.bias.requires_grad
    assert model.first.training and not model.twice.training


def test_patterns_and_filter_choose_layers() -> None:
    model = Net()
    asked = []

    def not_head(module: nn.Module, name: str) -> bool:
        asked.append((type(module), name))
        return name != "head"

    config = {"first": sk.Sparse(sk.Block(8, 1), 0.75), "unused": None, "t*": HALF, "head": HALF}
    report = sk.sparsify_(model, config, filter_fn=not_head)
    assert [model.first.granularity, model.twice.granularity] == [sk.Block(8, 1), sk.Block(16, 1)]
    assert report["head"].verdict == "kept dense: filter_fn leaves it out"
    assert report["unused"].verdict == "kept dense: config says so ('unused': None)"
    assert type(model.head) is type(model.unused) is nn.Linear
    assert asked == [(nn.Linear, "first"), (nn.Linear, "twice"), (nn.Linear, "head")]


def test_a_shared_module_is_replaced_everywhere_by_one() -> None:
    shared = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU(), shared), "c": nn.Linear(32, 32)})
    report = sk.sparsify_(model, {"b.2": HALF, "c": None})
    assert isinstance(model["a"], sk.SparseLinear)
    assert model["a"] is model["b"][0] is model["b"][2]
    assert [row.layer for row in report] == ["a", "c"] and model["a"].name == "a"
    sk.densify_(model)
    assert type(model["a"]) is nn.Linear and model["a"] is model["b"][0] is model["b"][2]


def test_sparse_layers_are_left_as_they_are() -> None:
    model = Net()
    sk.sparsify_(model, {"first": HALF})
    first = model.first
    report = sk.sparsify_(model, {"first": sk.Sparse(sk.Block(4, 1), 0.9), "twice": HALF})
    assert model.first is first and model.first.granularity == sk.Block(16, 1)
    assert report["first"].sparse and report["first"].reason == "already sparse"
    again = sk.sparsify_(model, {"*": sk.Sparse(sk.Block(4, 1), 0.9)}, filter_fn=lambda m, n: False)
    assert again["first"].bytes_before == again["first"].bytes_after == first.packed.nbytes


def test_a_compiled_model_is_taken_apart() -> None:
    model, x = Net().eval(), torch.randn(8, 32)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    report = sk.sparsify_(compiled, sk.Sparse(sk.Block(16, 1), 0.5, only_if_faster=False), example_inputs=x)
    assert isinstance(model.first, sk.SparseLinear) and report["first"].tokens == 8
    torch.testing.assert_close(compiled(x), model(x))
    assert sk.densify_(compiled) == ["first", "twice", "head", "unused"]
    torch.compiler.reset()


# ---- what stays dense, and why -------------------------------------------------------------------


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class NoForward(nn.Linear):
    pass


def with_attributes(**attributes: Any) -> nn.Linear:
    layer = nn.Linear(32, 32)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def tied() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(48, 32), "layer": nn.Linear(32, 48)})
    model["layer"].weight = model["embedding"].weight
    return model


def tied_by_data() -> nn.Module:
    model = nn.ModuleDict({"layer": nn.Linear(32, 32), "other": nn.Linear(32, 32)})
    model["layer"].weight.data = model["other"].weight.data
    return model


def hooked(register: str) -> Callable[[], nn.Linear]:
    def make() -> nn.Linear:
        layer = nn.Linear(32, 32)
        getattr(layer, register)(lambda *args: None)
        return layer

    return make


def pruned_by_torch() -> nn.Linear:
    return prune.l1_unstructured(nn.Linear(32, 32), "weight", 0.5)


def weight_norm() -> nn.Linear:
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))


@pytest.mark.parametrize(
    "make, layer, reason",
    [
        (lambda: OwnForward(32, 32), "layer", "OwnForward has a forward of its own"),
        (lambda: with_attributes(forward=lambda x: x), "layer", "Linear has a forward of its own"),
        (lambda: with_attributes(scale=nn.Parameter(torch.ones(1))), "layer", "has the parameters weight, bias, scale"),
        (lambda: with_attributes(more=nn.ReLU()), "layer", "holds more than weight and bias: more"),
        (weight_norm, "layer", "has a parametrization"),
        (pruned_by_torch, "layer", "torch.nn.utils.prune.remove makes masks permanent"),
        (lambda: nn.LazyLinear(32), "layer", "is not initialised yet"),
        (hooked("register_forward_hook"), "layer", "has hooks"),
        (hooked("register_forward_pre_hook"), "layer", "has hooks"),
        (hooked("register_full_backward_hook"), "layer", "has hooks"),
        (hooked("register_state_dict_post_hook"), "layer", "has hooks"),
        (tied, "layer.layer", "weight shared with layer.embedding"),
        (tied_by_data, "layer.layer", "weight shared with layer.other"),
        (lambda: nn.MultiheadAttention(32, 2), "layer.out_proj", "nn.MultiheadAttention multiplies with its weight"),
        (lambda: nn.TransformerEncoderLayer(32, 2, 64), "layer.linear1", "set_fastpath_enabled(False)"),
    ],
)
def test_stays_dense(make: Callable[[], nn.Module], layer: str, reason: str) -> None:
    model = nn.ModuleDict({"layer": make(), "plain": nn.Linear(32, 32)})
    kept = model.get_submodule(layer)
    report = sk.sparsify_(model, HALF)
    assert model.get_submodule(layer) is kept
    assert report[layer].verdict.startswith("kept dense: ") and reason in report[layer].verdict
    assert isinstance(model["plain"], sk.SparseLinear), "the other layer is none of its business"


def test_a_subclass_without_a_forward_of_its_own_is_replaced() -> None:
    model = nn.Sequential(NoForward(32, 32))
    sk.sparsify_(model, HALF)
    assert type(model[0]) is sk.SparseLinear


def test_attention_and_encoder_layers_of_torch_keep_working() -> None:
    x = torch.randn(2, 6, 32)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 1).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        report = sk.sparsify_(encoder, HALF)
        assert [row.sparse for row in report] == [False, True, True]
        with torch.no_grad():
            slow = encoder(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    # Once more with the fast path, which takes the weights from the layers: slower, but never wrong.
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), slow)


# ---- measuring -----------------------------------------------------------------------------------


def test_layers_are_timed_as_the_model_calls_them(timings: list[Any]) -> None:
    model, x = Net().eval(), torch.randn(8, 32)
    report = sk.sparsify_(model, HALF, example_inputs=x)
    assert timings == [((64, 32), 8, True), ((64, 64), 8, True), ((16, 64), 4, False)]
    assert (report["first"].tokens, report["first"].calls) == (8, 1)
    assert (report["twice"].tokens, report["twice"].calls) == (16, 2)
    assert report["twice"].dense_us == pytest.approx(128) and report["twice"].sparse_us == pytest.approx(64)
    assert report["first"].verdict.startswith(f"16x1, 50 %, {report['first'].kernel}, 2.0x")
    assert report["head"].verdict.startswith("kept dense: 0.50x at this size") and type(model.head) is nn.Linear
    assert report["head"].density == 0.5 and report["head"].granularity == "16x1", "what was tried is shown"
    assert report["head"].bytes_after == report["head"].bytes_before == model.head.weight.nbytes
    assert report["unused"].verdict == "kept dense: example_inputs never reached it"
    assert report.us_before == pytest.approx(64 + 128 + 16) and report.us_after == pytest.approx(32 + 64 + 16)


def test_slower_layers_become_sparse_where_asked_for(timings: list[Any]) -> None:
    model = Net().eval()
    config = sk.Sparse(sk.Block(16, 1), 0.5, only_if_faster=False)
    report = sk.sparsify_(model, config, example_inputs=torch.randn(8, 32))
    assert report["head"].sparse and ", 0.50x" in report["head"].verdict
    assert report["unused"].sparse and report["unused"].reason == "not measured: example_inputs never reached it"


def test_equal_layers_are_timed_once(timings: list[Any]) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 64, bias=False))
    sk.sparsify_(model, {"3": sk.Sparse(sk.Block(16, 1), 0.75), "*": HALF}, example_inputs=torch.randn(8, 64))
    assert timings == [((64, 64), 8, True), ((64, 64), 8, True), ((64, 64), 8, False)]


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, 2.0), lambda x: {"x": x, "scale": 2.0}, lambda x: [x]])
def test_example_inputs_come_in_several_forms(form: Callable[[Tensor], Any], timings: list[Any]) -> None:
    report = sk.sparsify_(Net().eval(), HALF, example_inputs=form(torch.randn(8, 32)))
    assert report["first"].tokens == 8


def test_without_a_kernel_the_report_says_so(timings: list[Any]) -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 64)).half()
    report = sk.sparsify_(model, HALF, example_inputs=torch.randn(8, 32).half())
    assert report["0"].verdict.startswith("kept dense: 0.50x at this size (cpu: n")
    assert report["1"].verdict.startswith("16x1, 50 %, reference_block, 2.0x, cpu: n")
    (row,) = sk.sparsify_(nn.Sequential(nn.Linear(32, 32)).half(), HALF)
    assert row.verdict.startswith("16x1, 50 %, reference_block, cpu: n")
    assert row.verdict.endswith("; not measured: pass example_inputs")


class Noise(nn.Module):
    """Draws numbers in eval mode too, from both generators that a model may use."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) * random.random()


def test_looking_leaves_no_trace(timings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(Noise(), Net()), torch.randn(8, 32)  # in training: statistics would move
    model[1].twice.eval()
    before, calls = snapshot(model), []
    monkeypatch.setattr(convert, "replace", lambda *args: None)
    batches = (calls.append("calibration") or x for _ in range(2))
    report = sk.sparsify_(model, {"1.twice": HALF, "*": None}, example_inputs=x, calibration=batches)
    assert report["1.twice"].sparse and report["1.twice"].tokens == 16 and len(calls) == 2, "it was really looked at"
    assert_same(before, snapshot(model))


# ---- calibration ---------------------------------------------------------------------------------


def test_calibration_chooses_and_corrects_the_weights() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    mixing = torch.randn(32, 32)
    batches = [torch.randn(64, 32) @ mixing for _ in range(4)]
    plain, calibrated = copy.deepcopy(model), copy.deepcopy(model)
    sk.sparsify_(plain, HALF)
    report = sk.sparsify_(calibrated, HALF, calibration=iter(batches))
    assert all(row.sparse and row.density == 0.5 for row in report)
    x = torch.randn(256, 32) @ mixing
    error, corrected = ((m[0](x) - model[0](x)).square().mean() for m in (plain, calibrated))
    assert corrected < 0.7 * error


def test_only_layers_that_pay_are_calibrated(timings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def calibrated_weights(model: nn.Module, layers: Any, wanted: Any, calibration: Any) -> Any:
        asked.extend(wanted)
        assert not model.training and not torch.is_grad_enabled()
        return {n: (torch.ones_like(m.weight), sk.make_mask(m.weight, sk.Block(16, 1), 0.5)) for n, m in layers.items()}

    monkeypatch.setattr(convert, "calibrated_weights", calibrated_weights)
    model = Net()
    sk.sparsify_(model, HALF, example_inputs=torch.randn(8, 32), calibration=[torch.randn(8, 32)])
    assert asked == ["first", "twice"]
    assert set(model.first.weight.unique().tolist()) == {0.0, 1.0}
    assert model.training


# ---- failing changes nothing ---------------------------------------------------------------------


def spoil(model: Net, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_submodule(name).weight[3, 5] = value


def untouched(model: Net) -> None:
    pass


X = torch.randn(8, 32)
FAULTS: dict[str, tuple[Callable[[Net], Any], dict[str, Any], type[Exception], str]] = {
    "NaN": (lambda m: spoil(m, "head", float("nan")), {}, ValueError, "^head: weight: holds NaN or infinity"),
    "infinity": (lambda m: spoil(m, "head", float("inf")), {}, ValueError, "^head: weight: holds NaN or infinity"),
    "dtype": (lambda m: m.head.to(torch.float8_e5m2), {}, TypeError, "^head: weight: expected a dense tensor of"),
    "meta": (lambda m: m.head.to("meta"), {}, ValueError, "^head: weight is on the meta device.*load the model first"),
    "large block": (
        untouched,
        {"config": sk.Sparse(sk.Block(32, 1), 0.5)},
        ValueError,
        r"^head: weight: a 32x1 block is larger than the weight \[16, 64\].*at most 16x64, or keep this layer dense",
    ),
    "no sparsity": (untouched, {"config": sk.Sparse(sk.Block(16, 1))}, ValueError, "^first: 16x1 needs a sparsity"),
    "idle pattern": (untouched, {"config": {"*": HALF, "x": None}}, ValueError, "'x' matches no Linear"),
    "bare granularity": (untouched, {"config": sk.Block(16, 1)}, TypeError, "says nothing about sparsity"),
    "inputs as filter": (untouched, {"filter_fn": X}, TypeError, "filter_fn: expected a function .* got Tensor"),
    "filter fails": (untouched, {"filter_fn": lambda m, n: 1 / 0}, ZeroDivisionError, "division"),
    "model fails": (untouched, {"example_inputs": X[:, :31]}, RuntimeError, "31"),
    "no such argument": (untouched, {"example_inputs": {"y": X}}, TypeError, "y"),
    "calibration fails": (untouched, {"calibration": [X, X[:, :31]]}, RuntimeError, "31"),
    "no batches": (untouched, {"calibration": []}, ValueError, "no batches"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_leaves_the_model_as_it_was(fault: str, timings: list[Any]) -> None:
    prepare, arguments, error, text = FAULTS[fault]
    model = Net()
    model.twice.eval()
    prepare(model)
    before = snapshot(model)
    with pytest.raises(error, match=text):
        sk.sparsify_(model, **{"config": HALF, **arguments})
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("place", ["time_linear", "pack", "sparse_twin"])
def test_failing_half_way_leaves_the_model_as_it_was(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, calls = Net(), torch.randn(8, 32), []
    module = trial if place == "time_linear" else convert
    original = getattr(module, place)

    def fails_the_second_time(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return original(*args)

    monkeypatch.setattr(module, place, fails_the_second_time)
    before = snapshot(model)
    config = sk.Sparse(sk.Block(16, 1), 0.5, only_if_faster=False)
    with pytest.raises(RuntimeError, match="out of memory"):
        sk.sparsify_(model, config, example_inputs=x)
    assert_same(before, snapshot(model))


def test_a_model_that_is_itself_a_linear_layer() -> None:
    with pytest.raises(ValueError, match=r"use sparsekern\.SparseLinear\.from_dense"):
        sk.sparsify_(nn.Linear(32, 32), HALF)
    layer = sk.SparseLinear.from_dense(nn.Linear(32, 32), sk.Block(16, 1), 0.5)
    assert [row.reason for row in sk.sparsify_(layer, HALF)] == ["already sparse"]
    with pytest.raises(ValueError, match=r"cannot be replaced in place; use to_dense\(\)"):
        sk.densify_(layer)
    for function in (lambda m: sk.sparsify_(m, HALF), sk.densify_):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
            function({})


def test_a_model_without_such_layers() -> None:
    model = nn.Sequential(nn.Conv1d(3, 3, 1))
    assert len(sk.sparsify_(model, HALF)) == 0 and sk.densify_(model) == []


# ---- and back ------------------------------------------------------------------------------------


def test_densify_puts_back_dense_layers_with_zeros() -> None:
    model, x = Net().eval(), torch.randn(8, 32)
    bias = model.first.bias
    sk.sparsify_(model, HALF)
    y, weight = model(x), model.first.weight
    assert sk.densify_(model) == ["first", "twice", "head", "unused"]
    assert type(model.first) is nn.Linear and torch.equal(model.first.weight, weight) and model.first.bias is bias
    assert not model.first.training and model.head.bias is None
    torch.testing.assert_close(model(x), y)
    assert sk.densify_(model) == []
    # The zeros are a mask that sparsify_ finds again.
    assert sk.sparsify_(model, HALF)["first"].density == 0.5 and torch.equal(model.first.weight, weight)


def test_densify_unfuses_activations_and_refuses_hooks() -> None:
    packed = sk.pack(torch.randn(32, 32), sk.Block(16, 1))
    model = nn.Sequential(sk.SparseLinear(packed, torch.randn(32), "gelu"), sk.SparseLinear(packed))
    x, bias = torch.randn(3, 32), model[0].bias
    y = model(x)
    handle = model[1].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r"^1: has hooks, which would be lost; remove them first"):
        sk.densify_(model)
    assert isinstance(model[0], sk.SparseLinear)
    handle.remove()
    sk.densify_(model)
    assert isinstance(model[0], nn.Sequential) and model[0][0].bias is bias
    torch.testing.assert_close(model(x), y)


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Block(4, 1), sk.Channel(), sk.Unstructured()])
@pytest.mark.parametrize("calibrated", [False, True])
def test_no_dense_copy_stays_alive(granularity: Any, calibrated: bool, timings: list[Any]) -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256))
    x = torch.randn(300, 256)
    weights = [weakref.ref(layer.weight.untyped_storage()) for layer in model]
    layers = [weakref.ref(layer) for layer in model]
    report = sk.sparsify_(
        model, sk.Sparse(granularity, 0.75), example_inputs=x, calibration=[x] if calibrated else None
    )
    assert report.sparse_layers == 2
    gc.collect()
    assert all(ref() is None for ref in (*weights, *layers))
    held = sum(t.untyped_storage().nbytes() for layer in model for t in layer.packed.tensors)
    dense = 2 * 256 * 512 * 4
    index = 2 * sum(len(layer.values) for layer in model) if granularity.label in ("4x1", "unstructured") else 0
    assert report.bytes_after == held <= 0.25 * dense * 1.15 + index + 2 * 4096
    assert report.bytes_before == dense
