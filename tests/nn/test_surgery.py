"""Which layers can be replaced, and what must not be lost when they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk

HALF = sk.Sparse(sk.Block(16, 1), 0.5)


class OwnCall(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


def test_a_layer_with_a_call_of_its_own_stays_dense() -> None:
    model, x = nn.Sequential(OwnCall(32, 32)), torch.randn(3, 32)
    y = model(x)
    assert sk.sparsify_(model, HALF)["0"].verdict == "kept dense: OwnCall has a __call__ of its own"
    assert torch.equal(model(x), y)


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_from_dense_refuses_a_layer_that_is_more_than_a_linear_one() -> None:
    hooked = nn.Linear(24, 40)
    hooked.register_forward_hook(lambda *args: None)
    for layer, text in ((Doubling(24, 40), "Doubling has a forward of its own"), (hooked, "has hooks")):
        with pytest.raises(ValueError, match=rf"^SparseLinear\.from_dense: expected a plain nn\.Linear, .*{text}"):
            sk.SparseLinear.from_dense(layer, sk.Block(8, 1), 0.5)


class Aside(nn.Module):
    """Runs its layer through a place that is no submodule."""

    def __init__(self, hold: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 32)
        self.__dict__["aside"] = hold(self.fc)


@pytest.mark.parametrize("hold", [lambda m: m, lambda m: [m], lambda m: (m,), lambda m: {"fc": m}])
def test_a_layer_that_is_held_aside_stays_dense(hold: Callable[[nn.Module], object], tmp_path: Path) -> None:
    model = nn.Sequential(Aside(hold), nn.Linear(32, 32))
    report = sk.sparsify_(model, HALF)
    assert report["0.fc"].verdict.startswith("kept dense: is also held by 0.aside, where it could not be replaced")
    assert type(model[0].fc) is nn.Linear and isinstance(model[1], sk.SparseLinear)

    saved = nn.Sequential(nn.ModuleDict({"fc": nn.Linear(32, 32)}), nn.Linear(32, 32))
    sk.sparsify_(saved, HALF)
    sk.save(saved, tmp_path / "model")
    with pytest.raises(ValueError, match=r"0\.fc: expected a layer that can be replaced, but it is also held by 0\.as"):
        sk.load_(model, tmp_path / "model")


def test_a_model_wrapped_for_distributed_training_is_refused(tmp_path: Path, process_group: None) -> None:
    saved = nn.ModuleDict({"module": nn.Sequential(nn.Linear(32, 32))})
    sk.sparsify_(saved, HALF)
    sk.save(saved, tmp_path / "model")
    model = nn.ModuleDict({"net": nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(32, 32)))})
    for replace in (lambda: sk.sparsify_(model, HALF), lambda: sk.densify_(model)):
        with pytest.raises(ValueError, match=r"^net: is wrapped in DistributedDataParallel.*then wrap it"):
            replace()
    with pytest.raises(ValueError, match=r"model: is wrapped in DistributedDataParallel"):
        sk.load_(model["net"], tmp_path / "model")
    assert type(model["net"].module[0]) is nn.Linear
    report = sk.sparsify_(model["net"].module, HALF)
    assert report.sparse_layers == 1


def test_a_sparse_layer_on_meta_is_reported_without_a_density() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    sk.sparsify_(model, {"0": HALF, "1": None})
    model[0].to("meta")
    row = sk.sparsify_(model, HALF)["0"]
    assert row.density is None and row.verdict == f"16x1, {row.kernel}, already sparse"
    assert isinstance(model[1], sk.SparseLinear)


def test_frozen_weights_come_back_frozen(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    sk.save(model, tmp_path / "dense")
    model[0].weight.requires_grad_(False)
    for back in (sk.densify_, lambda m: sk.load_(m, tmp_path / "dense")):
        sk.sparsify_(model, HALF)
        state = torch.get_rng_state()
        back(model)
        assert [layer.weight.requires_grad for layer in model] == [False, True]
        assert torch.equal(torch.get_rng_state(), state)
