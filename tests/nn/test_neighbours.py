"""Which module reads the output of which, in graphs, in sequences, and in both modes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.nn.fold import FoldedBatchNorm
from sparsekern.nn.neighbours import Neighbours, neighbours


class Net(nn.Module):
    """A layer, alone and in a module of its own, and an activation, with a forward to choose."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.act, self.run = nn.Linear(4, 4), nn.ReLU(), run
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def of(model: nn.Module) -> Neighbours:
    return neighbours(model, nn.Linear, nn.ReLU, modes=(False, True))


def keeping(m: Net, x: Tensor) -> Tensor:
    m.hidden = m.fc(x)
    return m.act(m.hidden)


def watched_in_training(m: Net, x: Tensor) -> Tensor:
    y = m.fc(x)
    return m.act(y) + y if m.training else m.act(y)


def skipped_in_training(m: Net, x: Tensor) -> Tensor:
    return x if m.training else m.act(m.fc(x))


def differing(m: Net, x: Tensor) -> Tensor:
    return m.act(m.inner(x)) if m.training else m.act(m.fc(x))


def counting(m: Net, x: Tensor) -> Tensor:
    if m.training:
        m.seen.add_(1)
    return m.act(m.fc(x))


ELSEWHERE, APART = "the output of the layer is used elsewhere too", "they are called differently in training and in"


@pytest.mark.parametrize(
    "run, obstacle",
    [
        (lambda m, x: m.act(m.fc(x)), None),
        (lambda m, x: m.act(m.inner(x)), None),
        (counting, None),
        (skipped_in_training, None),
        (keeping, ELSEWHERE),
        (watched_in_training, ELSEWHERE),
        (differing, APART),
        (lambda m, x: m.act(m.fc(m.act(m.fc(x)))), "one of the two is called more than once"),
    ],
)
def test_pairs_in_a_graph(run: Callable[[Net, Tensor], Tensor], obstacle: str | None) -> None:
    model = Net(run)
    state, attributes = copy.deepcopy(model.state_dict()), set(vars(model))
    found = of(model)
    assert found.untraceable is None and found.pairs
    for pair in found.pairs:
        assert pair.obstacle is None if obstacle is None else pair.obstacle and pair.obstacle.startswith(obstacle)
    assert model.training and set(vars(model)) == attributes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()), "tracing counted"


@pytest.mark.parametrize("default", [None, False, "off"])
def test_a_forward_takes_the_branch_of_its_default_arguments_too(default: object) -> None:
    class Optional(Net):
        def forward(self, x: Tensor, option: object = default, *, other: object = default, **more: object) -> Tensor:
            y = self.fc(x)
            return self.act(y) + y if option is default and other is default else self.act(y)

    model = Optional(keeping)
    assert [pair.obstacle for pair in of(model).pairs] == [ELSEWHERE]
    assert len(of(model).graphs) == 4, "in both modes"


def test_outputs_that_are_kept_in_lists() -> None:
    def collecting(m: Net, x: Tensor) -> Tensor:
        m.outputs = {"all": [m.fc(x)]}
        return m.act(m.outputs["all"][0])

    assert [pair.obstacle for pair in of(Net(collecting)).pairs] == [ELSEWHERE]


def test_hooks_around_one_of_the_two_see_what_is_between_them() -> None:
    model = Net(lambda m, x: m.act(m.inner(x)))
    model.register_forward_hook(lambda *args: None)
    assert of(model).pairs[0].obstacle is None, "around both"
    model.inner.register_forward_hook(lambda *args: None)
    assert "around one of the two has hooks" in str(of(model).pairs[0].obstacle)


class Untraceable(nn.Module):
    def __init__(self, *steps: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > 0 else self.body(-x)


def test_in_a_sequence_a_module_that_stands_there_twice_is_between_others_too() -> None:
    act, norm = nn.Hardtanh(-3, 1), nn.BatchNorm2d(4)
    norm.bias.data.fill_(2)
    model, x = Untraceable(act, nn.Conv2d(4, 4, 1), act, norm).eval(), torch.randn(2, 4, 3, 3)
    assert not neighbours(model, nn.Conv2d, nn.BatchNorm2d).pairs
    y = model(x)
    sk.sparsify_(model, {"*": None}, fold_batch_norm=True)
    torch.testing.assert_close(model(x), y)


def test_scripted_parts_are_left_alone() -> None:
    part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    for wrap in (nn.Sequential, Untraceable):
        assert len(of(wrap(part, nn.Linear(4, 4), nn.ReLU())).pairs) == 1


def test_identities_of_what_was_folded_are_looked_through_unless_somebody_watches_them() -> None:
    for wrap in (nn.Sequential, Untraceable):
        model = wrap(nn.Conv2d(4, 4, 1), FoldedBatchNorm("0", "1"), nn.ReLU())
        found = neighbours(model, nn.Conv2d, nn.ReLU)
        assert [pair.obstacle for pair in found.pairs] == [None] and bool(found.untraceable) == (wrap is Untraceable)
        next(m for m in model.modules() if isinstance(m, FoldedBatchNorm)).register_forward_hook(lambda *args: None)
        assert not neighbours(model, nn.Conv2d, nn.ReLU).pairs
