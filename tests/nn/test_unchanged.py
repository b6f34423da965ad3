"""Models that folding or fusing would change in ways that their graphs do not show, and what is done about them."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.nn import trial
from sparsekern.nn.absorbed import Absorbed
from sparsekern.nn.neighbours import Neighbours
from sparsekern.nn.unchanged import difference
from sparsekern.plan import Timing

WHOLE = sk.Sparse(sk.Block(16, 1), 0.0, only_if_faster=False)
"""All of a weight, so that outputs are those of the dense model."""

Forward = Callable[["Net", Tensor, Tensor | None], Any]


class Net(nn.Module):
    """A convolution and what could become part of it, with a forward to choose."""

    def __init__(self, then: nn.Module, run: Forward) -> None:
        super().__init__()
        self.f, self.run = nn.Sequential(nn.Conv2d(16, 16, 1), then), run
        self.register_buffer("seen", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None, size: tuple[int, int] = (1, 1)) -> Any:
        return self.run(self, x, mask)


def norm() -> nn.Module:
    norm = nn.BatchNorm2d(16)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def images() -> Tensor:
    return torch.randn(2, 16, 4, 4)


FOLD, FUSE = {"fold_batch_norm": True}, {"fuse_activations": True}
both = pytest.mark.parametrize("then, asked", [(norm, FOLD), (nn.SiLU, FUSE)], ids=["folding", "fusing"])


def joined(model: Net) -> bool:
    return isinstance(model.f[1], Absorbed)


# ---- what is not joined --------------------------------------------------------------------------


def optional(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    y = m.f[0](x)
    z = m.f[1](y)
    return z + y if mask is None else z * mask


def by_type_of_step(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    seen = []
    for step in m.f:
        x = step(x)
        if isinstance(step, (nn.BatchNorm2d, nn.SiLU)):
            seen.append(x)
    return seen


def keeping(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    m.kept = by_type_of_step(m, x, mask)
    return x


def failing(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    if isinstance(m.f[1], Absorbed):
        raise RuntimeError("unknown")
    return m.f(x)


def by_type_of_value(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    y = m.f[0](x)
    z = m.f[1](y)
    return {"out": z + y if isinstance(z, Tensor) else z}


def stepping(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    seen = [x]
    for step in m.f if x.sum() > -1e9 else ():
        seen.append(step(seen[-1]))
    return seen


TYPES, OUTPUTS = (
    "the model's graph is another then: it goes by the types of its modules, or reads their weights",
    "the model's outputs are others then",
)
FAILS = "what the model computes then cannot be compared (RuntimeError)"
ASSUMED = " (assumed: the sequence is called as a whole)"


@both
@pytest.mark.parametrize(
    "run, given, reason",
    [
        (optional, "nothing", "is used elsewhere too"),
        (by_type_of_step, "nothing", TYPES),
        (keeping, "nothing", TYPES),
        (failing, "nothing", FAILS),
        (by_type_of_value, "inputs", OUTPUTS),
        (stepping, "inputs", OUTPUTS),
        (stepping, "batches", OUTPUTS),
        (stepping, "a generator", OUTPUTS),
    ],
)
def test_nothing_is_joined_where_the_model_would_compute_something_else(
    run: Forward, given: str, reason: str, then: Callable[[], nn.Module], asked: dict[str, bool]
) -> None:
    model, x = Net(then(), run), images()
    unjoined, second = copy.deepcopy(model), model.f[1]
    inputs: dict[str, Any] = {
        "nothing": {},
        "inputs": {"example_inputs": x},
        "batches": {"calibration": [x]},
        "a generator": {"calibration": (batch for batch in (x, x))},
    }[given]
    sk.sparsify_(unjoined, WHOLE)
    report = sk.sparsify_(model, WHOLE, **inputs, **asked)
    assert model.f[1] is second and model.f[0].activation == "none"
    assert f"not f{'olded' if asked is FOLD else 'used: f.1'}: " in report["f.0"].reason
    assert report["f.0"].reason.endswith(reason)
    torch.testing.assert_close(model(x), unjoined(x))


def test_a_layer_is_timed_alone_where_its_activation_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def time(dense: nn.Module, sparse: Any, images: Any, layout: Any, *then: nn.Module) -> Timing:
        timed.append((sparse.activation, then))
        return Timing(2e-6, 1e-6, 2.0, 0.1, 30)

    monkeypatch.setattr(trial, "time_conv2d", time)
    for run in (by_type_of_value, lambda m, x, mask: m.f(x)):
        sk.sparsify_(Net(act := nn.SiLU(), run), WHOLE, example_inputs=images(), fuse_activations=True)
    assert timed == [("none", ()), ("silu", (act,))]


# ---- what is -------------------------------------------------------------------------------------


def unclear(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    return m.f(x) if x.sum() > 0 else m.f(-x)


@both
def test_reports_say_what_rests_on_an_assumption(then: Callable[[], nn.Module], asked: dict[str, bool]) -> None:
    for run, ending in ((unclear, f"in{ASSUMED}"), (lambda m, x, mask: m.f(x), "in")):
        model = Net(then(), run)
        assert sk.sparsify_(model, WHOLE, **asked)["f.0"].reason.endswith(ending) and joined(model)


def writing(m: Net, x: Tensor, mask: Tensor | None) -> Any:
    x.mul_(2)
    m.seen.add_(1)
    m.last = y = m.f(x)
    return y * m.seen, {"more": [torch.rand(3), float("nan") * y, float("inf") * y, y > 1e9, 3, None]}


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rounding_and_what_a_model_writes_are_no_difference(
    dtype: torch.dtype, then: Callable[[], nn.Module], asked: dict[str, bool]
) -> None:
    model = Net(then(), writing).to(dtype)
    sk.sparsify_(model, WHOLE, example_inputs=images().to(dtype), **asked)
    assert joined(model)


def test_comparing_leaves_no_trace() -> None:
    model, x = Net(nn.SiLU(), writing).train(), images()
    before, attributes, seen, random = x.clone(), dict(vars(model)), model.seen, torch.random.get_rng_state()
    assert difference(model, Neighbours(()), (), {}, {}, x) is None
    assert vars(model) == attributes and model.seen is seen and not seen
    assert torch.equal(x, before) and torch.equal(torch.random.get_rng_state(), random)


def test_calibration_sees_every_batch_of_a_generator() -> None:
    """Also the one that outputs were compared on."""
    batches = [images() for _ in range(3)]

    def generator() -> Iterator[Tensor]:
        yield from batches

    models = [Net(nn.SiLU(), lambda m, x, mask: m.f(x))]
    models.append(copy.deepcopy(models[0]))
    for model, given in zip(models, (batches, generator()), strict=True):
        sk.sparsify_(model, sk.Sparse(sk.Block(16, 1), 0.5), calibration=given, fuse_activations=True)
        assert joined(model)
    assert torch.equal(models[0].f[0].weight, models[1].f[0].weight)


@pytest.mark.parametrize(
    "output, other",
    [
        (lambda x: x, lambda x: x * 1.001),
        (lambda x: x, lambda x: x.double()),
        (lambda x: x, lambda x: x[:1]),
        (lambda x: x, lambda x: torch.where(x == x.max(), torch.nan, x)),
        (lambda x: x > 0, lambda x: x > x.max()),
        (lambda x: [x, x], lambda x: (x, x)),
        (lambda x: [x, None], lambda x: [x, x]),
        (lambda x: {"a": x}, lambda x: {"b": x}),
    ],
)
def test_outputs_that_differ(output: Callable[[Tensor], Any], other: Callable[[Tensor], Any]) -> None:
    class Of(nn.Module):
        def __init__(self, run: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.run = run

        def forward(self, x: Tensor) -> Any:
            return self.run(x)

    model = nn.Sequential(nn.Identity())
    for run, found in ((other, OUTPUTS), (output, None)):
        swap = {model[0]: Of(run)}
        assert difference(model, Neighbours(()), (), {model[0]: Of(output)}, swap, images()) == found
    assert type(model[0]) is nn.Identity
