"""``sparsify_`` and ``densify_`` on convolutions: what is replaced, what stays and why, BatchNorm folded in."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.nn import trial
from sparsekern.nn.fold import FoldedBatchNorm, find_pairs
from sparsekern.plan import Timing

HALF = sk.Sparse(sk.Block(16, 1), 0.5)


def norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm that has seen data, so that it is no identity."""
    layer = nn.BatchNorm2d(channels)
    for tensor in (layer.weight.data, layer.running_mean, layer.bias.data):
        tensor.copy_(torch.randn(channels))
    layer.running_var.copy_(torch.rand(channels) + 0.5)
    return layer


class Block(nn.Module):
    """A residual block: one BatchNorm after each convolution, one of which is depthwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn2 = norm(channels)
        self.grouped = nn.Conv2d(channels, channels, 1, groups=channels // 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return x + self.grouped(self.bn2(self.depthwise(y)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), norm(32), nn.Hardswish())
        self.block = Block(32)
        self.unread = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.stem(x))
        z = self.unread(y)
        return self.head((z + torch.relu(z)).mean((2, 3)))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 13, 11)


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replaces the stopwatch: sparse is twice as fast. Lists what was timed."""
    timed: list[tuple[Any, ...]] = []

    def time_conv2d(dense: nn.Conv2d, sparse: sk.SparseConv2d, shape: tuple[int, ...], layout: Any) -> Timing:
        timed.append((sparse.name, shape, layout))
        return Timing(2e-6, 1e-6, speedup=2.0, spread=0.1, rounds=30)

    monkeypatch.setattr(trial, "time_conv2d", time_conv2d)
    monkeypatch.setattr(trial, "time_linear", lambda *args: Timing(2e-6, 1e-6, 2.0, 0.1, 30))
    return timed


# ---- what is replaced ----------------------------------------------------------------------------


def test_replaces_convolutions_and_takes_them_back() -> None:
    model, x = Net().eval(), images()
    expected = copy.deepcopy(model)
    for name in ("stem.0", "block.conv1", "unread", "head"):
        weight = expected.get_submodule(name).weight
        weight.data *= sk.make_mask(weight, HALF.granularity, 0.5)
    bias = model.unread.bias
    report = sk.sparsify_(model, HALF)
    assert {row.layer for row in report if row.sparse} == {"stem.0", "block.conv1", "unread", "head"}
    assert type(model.unread) is sk.SparseConv2d and model.unread.bias is bias and model.unread.name == "unread"
    assert report["block.conv1"].shape == (32, 32, 3, 3) and "32x32x3x3" in str(report)
    assert report["unread"].kernel and report["unread"].density == 0.5
    torch.testing.assert_close(model(x), expected(x))
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(channels_last), expected(x))
    assert sk.densify_(model) == ["stem.0", "block.conv1", "unread", "head"]
    assert type(model.unread) is nn.Conv2d and model.unread.bias is bias
    torch.testing.assert_close(model(x), expected(x))


def test_depthwise_and_narrow_groups_stay_dense_and_say_so() -> None:
    model = Net().eval()
    report = sk.sparsify_(model, {"block.*": HALF})
    assert report["block.depthwise"].verdict.startswith("kept dense: is depthwise (32 groups of one input)")
    assert "its 4 groups of 8 inputs and 8 outputs are too narrow" in report["block.grouped"].verdict
    assert report["block.conv1"].sparse


@pytest.mark.parametrize(
    "layer, text",
    [("block.depthwise", "is depthwise"), ("block.grouped", "are too narrow"), ("stem.0", "block is larger than")],
)
def test_an_explicit_request_that_makes_no_sense_is_an_error(layer: str, text: str) -> None:
    model = Net().eval()
    before = list(model.modules())
    config = {layer: sk.Sparse(sk.Block(64, 1), 0.5), "*": HALF}
    with pytest.raises(ValueError, match=rf"^{layer}: .*{text}.*; leave it dense \(None in the config\)"):
        sk.sparsify_(model, config)
    assert list(model.modules()) == before


def test_a_granularity_too_large_for_some_convolutions_of_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 1, groups=2))
    report = sk.sparsify_(model, HALF)
    assert [row.sparse for row in report] == [False, True, True], "32 channels a group are enough"
    assert "16x1 block is larger than the weight [8, 27]" in report["0"].reason


class Standardised(nn.Conv2d):
    def _conv_forward(self, *args: Any) -> Tensor:
        return 2 * super()._conv_forward(*args)


def tied() -> nn.Module:
    model = nn.ModuleList([nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)])
    model[0].weight = model[1].weight
    return model


def hooked() -> nn.Module:
    layer = nn.Conv2d(16, 16, 1)
    layer.register_forward_hook(lambda *args: None)
    return layer


@pytest.mark.parametrize(
    "make, layer, reason",
    [
        (lambda: Standardised(16, 16, 1), "0", "Standardised has a _conv_forward of its own"),
        (lambda: nn.LazyConv2d(16, 1), "0", "is not initialised yet"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1)), "0", "has a parametrization"),
        (hooked, "0", "has hooks"),
        (tied, "0.0", "weight shared with 0.1"),
    ],
)
def test_stays_dense(make: Callable[[], nn.Module], layer: str, reason: str) -> None:
    model = nn.Sequential(make(), nn.Conv2d(16, 16, 1), nn.ConvTranspose2d(16, 16, 1))
    report = sk.sparsify_(model, HALF)
    assert report[layer].verdict.startswith("kept dense: ") and reason in report[layer].verdict
    assert isinstance(model[1], sk.SparseConv2d) and type(model[2]) is nn.ConvTranspose2d
    assert len(report) == 2 + isinstance(make(), nn.ModuleList)


def test_a_model_that_is_itself_a_convolution() -> None:
    with pytest.raises(ValueError, match=r"itself an nn\.Conv2d .* use sparsekern\.SparseConv2d\.from_dense"):
        sk.sparsify_(nn.Conv2d(16, 16, 3), HALF)
    layer = sk.SparseConv2d.from_dense(nn.Conv2d(16, 16, 3), sk.Block(16, 1), 0.5)
    assert [row.reason for row in sk.sparsify_(layer, HALF)] == ["already sparse"]
    with pytest.raises(ValueError, match=r"itself a SparseConv2d and cannot be replaced in place; use to_dense\(\)"):
        sk.densify_(layer)


# ---- measuring -----------------------------------------------------------------------------------


def test_convolutions_are_timed_as_the_model_calls_them(timings: list[tuple[Any, ...]]) -> None:
    model, x = Net().eval(), images().to(memory_format=torch.channels_last)
    report = sk.sparsify_(model, HALF, example_inputs=x)
    sizes = {name: (shape, layout) for name, shape, layout in timings}
    assert sizes["stem.0"] == ((2, 3, 13, 11), torch.channels_last)
    assert sizes["block.conv1"] == ((2, 32, 6, 5), torch.channels_last)
    assert report["stem.0"].tokens == report["block.conv1"].tokens == 2 * 6 * 5
    assert all(report[name].sparse and report[name].speedup == 2.0 for name in sizes)
    timings.clear()
    again = Net().eval()
    sk.sparsify_(again, HALF, example_inputs=images())
    assert {layout for _, _, layout in timings} == {torch.contiguous_format}


@pytest.mark.needs_native
def test_the_kernel_that_is_named_is_the_one_for_the_images_that_were_seen(timings: list[tuple[Any, ...]]) -> None:
    products = {record.name for record in sk.kernels() if record.op == "block_linear"}
    for layout in (torch.contiguous_format, torch.channels_last):
        model = nn.Sequential(Net().stem, nn.Conv2d(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 48, 1)).eval()
        report = sk.sparsify_(model, HALF, example_inputs=images().to(memory_format=layout))
        assert report["0.0"].kernel.startswith("conv_")
        assert (report["1"].kernel in products) == (layout == torch.channels_last)
        assert report["3"].kernel in products, "of one pixel, which is a row in either layout"
        assert [row.kernel for row in sk.sparsify_(model, HALF)][1].startswith("conv_"), "nothing was seen"


def test_what_is_not_faster_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3))
    monkeypatch.setattr(trial, "time_conv2d", lambda *args: Timing(1e-6, 2e-6, 0.5, 0.1, 30))
    report = sk.sparsify_(model, HALF, example_inputs=torch.randn(16, 8, 8))
    assert report["0"].verdict.startswith("kept dense: 0.50x at this size") and type(model[0]) is nn.Conv2d
    assert report["0"].tokens == 36


def test_a_convolution_is_really_timed() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.Conv2d(16, 32, 1, bias=False))
    config = sk.Sparse(sk.Block(16, 1), 0.5, only_if_faster=False)
    report = sk.sparsify_(model, config, example_inputs=torch.randn(1, 16, 8, 8))
    assert all(row.sparse and row.dense_us and row.sparse_us and row.rounds for row in report)


# ---- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "same", "dilation": 2}, {"stride": 2, "padding": 1, "padding_mode": "circular"}],
    ids=str,
)
@pytest.mark.parametrize("granularity", [sk.Block(4, 1), sk.NM(2, 4), sk.Unstructured()], ids=lambda g: g.label)
def test_calibration_keeps_the_outputs_better_than_magnitude(granularity: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    mix = torch.randn(8, 8) * torch.logspace(0, -2, 8)  # channels of unequal weight, which depend on each other
    batches = [torch.einsum("bchw,cd->bdhw", torch.randn(4, 8, 9, 9), mix) for _ in range(3)]
    dense = nn.Sequential(nn.Conv2d(8, 16, 3, **options))
    sparsity = granularity.implied_sparsity or 0.5
    errors = []
    for calibration in (None, batches):
        model = copy.deepcopy(dense)
        sk.sparsify_(model, sk.Sparse(granularity, sparsity), calibration=calibration)
        with torch.no_grad():
            errors.append(sum(float((model(x) - dense(x)).square().sum()) for x in batches))
        assert abs(model[0].packed.density - 0.5) < 0.02
    assert errors[1] < 0.8 * errors[0]


def test_the_statistics_of_a_convolution_are_those_of_its_unfolded_input() -> None:
    conv, x = nn.Conv2d(3, 4, (2, 3), stride=(1, 2), padding=1, dilation=(2, 1)), torch.randn(2, 3, 7, 8)
    found = sk.prune.Calibration.collect(nn.Sequential(conv), [x])["0"].gram
    rows = nn.functional.unfold(x, (2, 3), (2, 1), 1, (1, 2)).view(2, 3, 6, -1).permute(0, 3, 2, 1).reshape(-1, 18)
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-4, atol=1e-4)
    matrix = conv.weight.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close((rows @ matrix.T).view(2, -1, 4).mT, (conv(x) - conv.bias[:, None, None]).flatten(2))


def test_layers_that_read_one_image_differently_have_statistics_of_their_own() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
            self.c = nn.Conv2d(4, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x) + self.c(x)

    seen = sk.prune.Calibration.collect(Branches(), [torch.randn(2, 4, 5, 5), torch.randn(1, 4, 6, 6)])
    assert seen["a"] is seen["b"] and seen["a"].gram.shape == (36, 36) and seen["c"].gram.shape == (4, 4)


def test_calibration_does_not_cover_groups_and_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 1, groups=2), nn.Conv2d(32, 32, 1))
    report = sk.sparsify_(model, HALF, calibration=[torch.randn(2, 32, 8, 8)])
    assert report["0"].verdict == "kept dense: has groups, which calibration does not cover: prune it without"
    assert report["1"].sparse


# ---- BatchNorm -----------------------------------------------------------------------------------


def test_folding_changes_no_output() -> None:
    model, x = Net().eval(), images()
    y = model(x)
    report = sk.sparsify_(model, {"*": None}, fold_batch_norm=True)
    torch.testing.assert_close(model(x), y)
    assert [type(m) for m in model.modules() if isinstance(m, (nn.BatchNorm2d, FoldedBatchNorm))] == [
        FoldedBatchNorm
    ] * 3
    assert report["block.conv1"].reason == "config says so ('*': None); block.bn1 folded in"
    assert "block.bn2 folded in" in report["block.depthwise"].reason, "those that stay dense too"
    assert "folded" not in report["unread"].reason
    assert model.block.conv1.bias is not None and "into block.conv1" in repr(model.block.bn1)


def test_a_folded_model_becomes_sparse() -> None:
    model, x = Net().eval(), images()
    whole = sk.Sparse(sk.Block(16, 1), 0.0)
    y = model(x)
    report = sk.sparsify_(model, whole, fold_batch_norm=True)
    assert isinstance(model.stem[0], sk.SparseConv2d) and report["stem.0"].verdict.endswith("stem.1 folded in")
    torch.testing.assert_close(model(x), y)
    sk.densify_(model)
    torch.testing.assert_close(model(x), y)


def test_folding_is_for_models_in_eval_mode_that_ask_for_it() -> None:
    model = Net()
    with pytest.raises(
        ValueError, match=r"fold_batch_norm: the model is in training mode.* call model\.eval\(\) first"
    ):
        sk.sparsify_(model, HALF, fold_batch_norm=True)
    assert type(model.stem[0]) is nn.Conv2d
    sk.sparsify_(model.eval(), HALF)
    assert isinstance(model.block.bn1, nn.BatchNorm2d)


def test_failing_after_folding_leaves_the_model_as_it_was() -> None:
    model = Net().eval()
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^block\.depthwise: "):
        sk.sparsify_(model, {"block.depthwise": HALF}, fold_batch_norm=True)
    assert list(model.modules()) == modules
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


class Graph(nn.Module):
    """A convolution and a BatchNorm with a forward to choose."""

    def __init__(self, run: Callable[["Graph", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.run = nn.Conv2d(4, 4, 1), norm(4), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def branching(m: Graph, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return m.bn(m.conv(x))
    return x


def remembering(m: Graph, x: Tensor) -> Tensor:
    m.last = x
    return m.bn(m.conv(x))


def trained(m: Graph) -> None:
    m.bn.train()


def without_statistics(m: Graph) -> None:
    m.bn = nn.BatchNorm2d(4, track_running_stats=False).eval()


def watched(m: Graph) -> None:
    m.bn.register_forward_hook(lambda *args: None)


@pytest.mark.parametrize(
    "run, change, reason",
    [
        (lambda m, x: m.bn(m.conv(x)), None, None),
        (remembering, None, None),
        (lambda m, x: m.bn(m.conv(x).relu()), None, None),
        (lambda m, x: m.bn(y := m.conv(x)) + y, None, "the output of the convolution is used elsewhere too"),
        (lambda m, x: m.bn(m.conv(m.bn(m.conv(x)))), None, "one of the two is called more than once"),
        (lambda m, x: m.bn(m.conv(x)) * m.conv.bias[0], None, "the model reads a parameter of the two past them"),
        (branching, None, "torch.fx cannot trace the model"),
        (lambda m, x: m.bn(m.conv(x)), trained, "is in training mode"),
        (lambda m, x: m.bn(m.conv(x)), without_statistics, "has no statistics of its own"),
        (lambda m, x: m.bn(m.conv(x)), watched, "has hooks"),
    ],
)
def test_what_cannot_be_folded(run: Any, change: Callable[[Graph], None] | None, reason: str | None) -> None:
    model, x = Graph(run).eval(), torch.randn(2, 4, 3, 3)
    if change:
        change(model)
    flags = [m.training for m in model.modules()]
    y, attributes = model(x), set(vars(model)) - {"last"}
    model.__dict__.pop("last", None)
    report = sk.sparsify_(model, {"conv": None}, fold_batch_norm=True)
    assert set(vars(model)) == attributes, "tracing left something"
    assert [m.training for m in model.modules()] == flags
    torch.testing.assert_close(model(x), y)
    if reason is None:
        plain = "relu" not in str(torch.fx.symbolic_trace(Graph(run)).graph)
        assert isinstance(model.bn, FoldedBatchNorm) == plain
    else:
        assert isinstance(model.bn, nn.BatchNorm2d)
        assert f"BatchNorm not folded: {reason}" in report["conv"].reason or reason in report["conv"].reason


def test_neighbours_in_a_sequence_are_folded_where_the_model_cannot_be_traced() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), norm(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() > 0 else self.body(-x)

    model, x = Untraceable().eval(), torch.randn(2, 4, 3, 3)
    y = model(x)
    pairs = find_pairs(model)
    assert pairs.folds == {"body.0": "body.1"}
    assert "torch.fx cannot trace the model (TraceError)" in pairs.reasons["body.3"]
    sk.sparsify_(model, {"*": None}, fold_batch_norm=True)
    torch.testing.assert_close(model(x), y)


# ---- files ---------------------------------------------------------------------------------------


def test_saving_and_loading(tmp_path: Path) -> None:
    model, x = Net().eval(), images()
    sk.sparsify_(
        model, {"stem.0": sk.Sparse(sk.Unstructured(), 0.5), "block.conv1": sk.Sparse(sk.NM(2, 4)), "head": HALF}
    )
    y = model(x)
    sk.save(model, tmp_path / "net")
    fresh, other = Net().eval(), Net().eval()
    sk.sparsify_(other, {"stem.0": sk.Sparse(sk.Channel(), 0.5), "unread": HALF})
    for again in (fresh, other):
        assert sk.load_(again, tmp_path / "net") == ["stem.0", "block.conv1", "head"]
        assert torch.equal(again(x), y)
        assert type(again.unread) is nn.Conv2d and again.stem[0].stride == (2, 2)
    sk.save(Net().eval(), tmp_path / "dense")
    assert sk.load_(fresh, tmp_path / "dense") == [] and type(fresh.stem[0]) is nn.Conv2d
