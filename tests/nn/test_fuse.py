"""Activations that sparse layers take over: which, what stands in their places, and that nothing else changes."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.nn import trial
from sparsekern.nn.fuse import FusedActivation
from sparsekern.plan import Timing

HALF = sk.Sparse(sk.Block(16, 1), 0.5)


def batch_norm() -> nn.BatchNorm2d:
    """One that has seen data, so that it is no identity."""
    norm = nn.BatchNorm2d(32)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


class Net(nn.Module):
    """A convolution with BatchNorm and an activation, and a linear layer with another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(16, 32, 3, bias=False), batch_norm(), nn.ReLU6(inplace=True)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Dropout(0), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


def images() -> Tensor:
    return 3 * torch.randn(2, 16, 7, 6)


def fused(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FusedActivation)]


LINEAR = [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.GELU()]
CONVOLUTION = [*LINEAR, nn.ReLU6(), nn.Hardtanh(0, 6), nn.Hardtanh(0.0, 6.0, inplace=True), nn.Hardswish()]


# ---- what is fused -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("act", CONVOLUTION, ids=str)
def test_outputs_and_gradients_are_those_of_the_unfused_model(act: nn.Module, training: bool) -> None:
    layers: list[nn.Module] = [nn.Conv2d(16, 32, 3), copy.deepcopy(act), nn.Conv2d(32, 16, 1), nn.Dropout(0)]
    layers += [nn.Flatten(2), nn.Linear(20, 32), copy.deepcopy(act)]
    plain = nn.Sequential(*layers).train(training)
    model = copy.deepcopy(plain)
    sk.sparsify_(plain, HALF)
    report = sk.sparsify_(model, HALF, fuse_activations=True)
    assert fused(model) == (["1", "6"] if str(act) in map(str, LINEAR) else ["1"]) and model[1].training == training
    assert report["0"].reason.endswith(f"{model[0].activation} (1) fused in") and "fused" not in report["2"].reason
    assert "into 0" in repr(model[1]) and f"activation={model[0].activation}" in repr(model[0])
    x = images().requires_grad_()
    again = x.detach().clone().requires_grad_()
    y, z = plain(x), model(again)
    torch.testing.assert_close(z, y)
    for output in (y, z):
        output.sum().backward()
    torch.testing.assert_close(again.grad, x.grad)
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_behind_a_folded_batch_norm_and_only_there() -> None:
    for fold in (True, False):
        model, x = Net().eval(), images()
        plain = copy.deepcopy(model)
        sk.sparsify_(plain, HALF, fold_batch_norm=fold)
        report = sk.sparsify_(model, HALF, fold_batch_norm=fold, fuse_activations=True)
        assert fused(model) == (["act"] if fold else []) + ["head.1"]
        assert report["conv"].reason.endswith("norm folded in; relu6 (act) fused in") == fold
        torch.testing.assert_close(model(x), plain(x))


def test_it_is_not_done_unasked_nor_to_layers_that_stay_dense() -> None:
    model = Net().eval()
    sk.sparsify_(model, HALF)
    assert not fused(model) and model.head[0].activation == "none"
    model = Net().eval()
    report = sk.sparsify_(model, {"conv": HALF, "*": None}, fold_batch_norm=True, fuse_activations=True)
    assert fused(model) == ["act"] and "fused" not in report["head.0"].reason


def test_calibration_sees_the_activations_of_the_dense_model() -> None:
    model, batches = Net().eval(), [images() for _ in range(4)]
    plain = copy.deepcopy(model)
    for net, fuse in ((plain, False), (model, True)):
        sk.sparsify_(net, HALF, calibration=batches, fold_batch_norm=True, fuse_activations=fuse)
    assert fused(model) == ["act", "head.1"]
    for name in ("conv", "head.0", "head.3"):
        assert torch.equal(model.get_submodule(name).weight, plain.get_submodule(name).weight)
    torch.testing.assert_close(model(batches[0]), plain(batches[0]))


def test_a_dense_layer_is_timed_with_its_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: dict[str, Any] = {}

    def time(dense: nn.Module, sparse: Any, *args: Any) -> Timing:
        timed[sparse.name] = (sparse.activation, [str(arg) for arg in args if isinstance(arg, nn.Module)])
        return Timing(2e-6, 1e-6, 2.0, 0.1, 30) if sparse.name != "head.0" else Timing(1e-6, 2e-6, 0.5, 0.1, 30)

    monkeypatch.setattr(trial, "time_conv2d", time)
    monkeypatch.setattr(trial, "time_linear", time)
    model = Net().eval()
    sk.sparsify_(model, HALF, example_inputs=images(), fold_batch_norm=True, fuse_activations=True)
    assert timed == {
        "conv": ("relu6", ["ReLU6(inplace=True)"]),
        "head.0": ("gelu", ["GELU(approximate='none')"]),
        "head.3": ("none", []),
    }
    assert fused(model) == ["act"] and isinstance(model.head[1], nn.GELU), "that of a layer that stayed dense"


def test_measuring_for_real() -> None:
    model = Net().eval()
    report = sk.sparsify_(
        model, sk.Sparse(sk.Block(16, 1), 0.5, only_if_faster=False), None, images(), fold_batch_norm=True,
        fuse_activations=True,
    )  # fmt: skip
    assert fused(model) == ["act", "head.1"] and all(row.dense_us for row in report)


# ---- what is not ---------------------------------------------------------------------------------


class Graph(nn.Module):
    """A linear layer and an activation with a forward to choose."""

    def __init__(self, run: Callable[["Graph", Tensor], Tensor], act: nn.Module) -> None:
        super().__init__()
        self.fc, self.act, self.run = nn.Linear(16, 16), act, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def plain(m: Graph, x: Tensor) -> Tensor:
    return m.act(m.fc(x))


def branching(m: Graph, x: Tensor) -> Tensor:
    return m.act(m.fc(x)) if x.sum() > 0 else x


def watched() -> nn.Module:
    act = nn.ReLU()
    act.register_forward_hook(lambda *args: None)
    return act


def patched() -> nn.Module:
    act = nn.ReLU()
    act.forward = lambda x: x + 1
    return act


NONE = "is none that the layer's kernels have"


@pytest.mark.parametrize(
    "run, act, reason",
    [
        (lambda m, x: m.act(m.fc(m.act(x))), nn.ReLU(), "act: one of the two is called more than once"),
        (lambda m, x: m.act(y := m.fc(x)) + y, nn.ReLU(), "act: the output of the layer is used elsewhere too"),
        (lambda m, x: m.act(m.fc(x)) if m.training else m.fc(x), nn.ReLU(), "act: they are called differently in"),
        (branching, nn.ReLU(), "torch.fx cannot trace the model (TraceError), and none follows in an nn.Sequential"),
        (plain, watched(), "act: it has hooks"),
        (plain, patched(), f"act: ReLU() {NONE}"),
        (plain, nn.GELU("tanh"), f"act: GELU(approximate='tanh') {NONE}"),
        (plain, nn.ReLU6(), f"act: ReLU6() {NONE}"),
        (plain, nn.Hardtanh(), f"act: Hardtanh(min_val=-1.0, max_val=1.0) {NONE}"),
        (plain, nn.Hardtanh(0, 6), f"act: Hardtanh(min_val=0, max_val=6) {NONE}"),
        (plain, nn.LeakyReLU(), None),
        (lambda m, x: m.act(2 * m.fc(x)), nn.ReLU(), None),
        (lambda m, x: torch.relu(m.fc(x)), nn.ReLU(), None),
        (lambda m, x: nn.functional.silu(m.fc(x)).relu(), nn.ReLU(), None),
    ],
)  # fmt: skip
def test_what_is_left_alone_and_why(run: Any, act: nn.Module, reason: str | None) -> None:
    model, x = Graph(run, act), torch.randn(4, 16)
    unfused = copy.deepcopy(model)
    sk.sparsify_(unfused, HALF)
    report = sk.sparsify_(model, HALF, fuse_activations=True)
    assert model.act is act and model.fc.activation == "none"
    torch.testing.assert_close(model(x), unfused(x))
    if reason is None:
        assert "fused" not in report["fc"].reason
    else:
        assert f"activation not fused: {reason}" in report["fc"].reason


def test_an_activation_that_is_held_elsewhere_stays() -> None:
    model = Graph(plain, nn.ReLU())
    model.all = [model.act]
    report = sk.sparsify_(model, HALF, fuse_activations=True)
    assert not fused(model) and "one of the two stands in several places" in report["fc"].reason


def test_neighbours_in_a_sequence_where_the_model_cannot_be_traced() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.ReLU()
            norm = batch_norm()
            self.body = nn.Sequential(nn.Conv2d(16, 32, 1), norm, nn.ReLU(), nn.Conv2d(32, 32, 1), shared)
            self.tail = nn.Sequential(nn.Conv2d(32, 16, 1), nn.Dropout(0), nn.ReLU(), nn.Conv2d(16, 16, 1), shared)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.body(x)) if x.sum() > 0 else self.tail(self.body(-x))

    model, x = Untraceable().eval(), images()
    unfused = copy.deepcopy(model)
    sk.sparsify_(unfused, HALF, fold_batch_norm=True)
    report = sk.sparsify_(model, HALF, fold_batch_norm=True, fuse_activations=True)
    assert fused(model) == ["body.2"]
    assert "several places" in report["body.3"].reason and "cannot trace the model" in report["tail.0"].reason
    torch.testing.assert_close(model(x), unfused(x))


@pytest.mark.parametrize("config", [{"head.0": sk.Sparse(sk.Block(64, 1), 0.5)}, {"head.9": HALF}])
def test_an_error_leaves_the_model_as_it_was(config: Any) -> None:
    model = Net().eval()
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"head"):
        sk.sparsify_(model, config | {"*": HALF}, fold_batch_norm=True, fuse_activations=True)
    assert list(model.modules()) == modules
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


# ---- afterwards ----------------------------------------------------------------------------------


def fused_net() -> Net:
    model = Net().eval()
    sk.sparsify_(model, HALF, fold_batch_norm=True, fuse_activations=True)
    assert fused(model) == ["act", "head.1"]
    return model


def test_densify_puts_activations_back() -> None:
    model = Net().eval()
    act, gelu = model.act, model.head[1]
    sk.sparsify_(model, HALF, fold_batch_norm=True, fuse_activations=True)
    x, keys = images(), [*Net().state_dict()]
    y, bias = model(x), model.conv.bias
    assert sk.densify_(model.train()) == ["conv", "head.0", "head.3"]
    assert model.act is act and model.head[1] is gelu and act.training and model.conv.bias is bias
    assert type(model.conv) is nn.Conv2d and type(model.head[0]) is nn.Linear
    assert [key for key in model.state_dict() if key != "conv.bias"] == [key for key in keys if "norm" not in key]
    torch.testing.assert_close(model(x), y)
    sk.sparsify_(model, HALF, fuse_activations=True)
    assert fused(model) == ["act", "head.1"], "once more"


def test_densify_in_parts_wrappers_and_copies() -> None:
    model, x = fused_net(), images()
    y = model(x)
    for whole in (nn.Sequential(copy.deepcopy(model)), nn.ModuleDict({"copy": copy.deepcopy(model)})):
        sk.densify_(whole)
        assert not fused(whole)
        torch.testing.assert_close(next(whole.children())(x), y)
    part = copy.deepcopy(model).head
    hidden, z = torch.randn(3, 32), part(torch.ones(3, 32))
    sk.densify_(part)
    assert type(part[0]) is nn.Linear and type(part[1]) is nn.GELU
    torch.testing.assert_close(part(torch.ones(3, 32)), z)
    alone = nn.Sequential(model.head[0])
    z = alone(hidden)
    sk.densify_(alone)
    torch.testing.assert_close(alone(hidden), z, msg="its activation is not there to be put back")


def test_densify_refuses_hooks_on_what_stands_for_an_activation() -> None:
    model = fused_net()
    model.act.register_forward_hook(lambda *args: None)
    modules = list(model.modules())
    with pytest.raises(ValueError, match=r"act: has hooks, which would be lost"):
        sk.densify_(model)
    assert list(model.modules()) == modules


def test_copies_pickles_and_exports() -> None:
    model, x = fused_net(), images()
    y = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), y) and fused(again) == ["act", "head.1"]
        sk.densify_(again)
        torch.testing.assert_close(again(x), y)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), y)
