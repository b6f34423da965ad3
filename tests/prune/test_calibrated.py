"""Calibrated pruning of several layers of a model."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.layouts import Granularity
from sparsekern.prune import Calibration, InputStatistics, calibrated_weights


@dataclass
class Sparse:
    granularity: Granularity
    sparsity: float | None


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(32, 32, generator=generator) * torch.logspace(-1, 1, 32)
    return [torch.randn(40, 32, generator=generator) @ mix for _ in range(5)]


def linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


WANTED = {"0": Sparse(sk.Block(16, 1), 0.5), "2": Sparse(sk.Unstructured(), 0.75), "4": Sparse(sk.Channel(), 0.25)}


def test_masks_and_weights_fit_their_layers(model, data):
    layers = linears(model)
    found = calibrated_weights(model, layers, WANTED, data)
    assert list(found) == list(WANTED)
    for name, (weight, mask) in found.items():
        want = WANTED[name]
        assert weight.shape == mask.shape == layers[name].weight.shape
        assert mask.dtype == torch.bool and not weight[~mask].any() and not weight.requires_grad
        assert mask.float().mean() == pytest.approx(1 - want.sparsity, abs=0.02)
        assert torch.equal(want.granularity.mask(mask.float(), want.sparsity), mask), "whole groups"


def test_outputs_are_nearer_than_with_magnitude(model, data):
    layers = linears(model)
    calibration = Calibration.collect(model, data)
    found = calibrated_weights(model, layers, WANTED, calibration)
    for name, (weight, _) in found.items():
        dense, gram = layers[name].weight.detach(), calibration[name].gram
        magnitude = dense * sk.make_mask(dense, WANTED[name].granularity, WANTED[name].sparsity)
        error, larger = (((change @ gram) * change).sum() for change in (weight - dense, magnitude - dense))
        assert error < larger


def test_ready_statistics_and_batches_agree(model, data):
    layers = linears(model)
    calibration = Calibration.collect(model, data, layers)
    for _ in range(2):  # nothing is used up
        ready = calibrated_weights(model, layers, WANTED, calibration)
        fresh = calibrated_weights(model, layers, WANTED, iter(data))
        for name in WANTED:
            assert all(torch.equal(a, b) for a, b in zip(ready[name], fresh[name], strict=True))


def test_model_is_left_as_it_was(model, data):
    model.train()
    before = copy.deepcopy(model.state_dict())
    calibrated_weights(model, linears(model), WANTED, data)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bfloat16_layers(model, data):
    model.bfloat16()
    found = calibrated_weights(model, linears(model), WANTED, [x.bfloat16() for x in data])
    assert all(weight.dtype == torch.bfloat16 and weight.isfinite().all() for weight, _ in found.values())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"2": Sparse(sk.Block(128, 1), 0.5)}, "2.*128x1"),
        ({"2": Sparse(sk.Block(16, 1), 1.0)}, r"2: sparsity.*\[0, 1\)"),
        ({"2": Sparse(sk.Block(16, 1), -0.1)}, r"2: sparsity"),
    ],
)
def test_what_a_layer_cannot_hold_is_refused_by_name(model, data, wanted, message):
    with pytest.raises(ValueError, match=message):
        calibrated_weights(model, linears(model), wanted, data)


def test_statistics_of_another_model_are_refused_by_name(model, data):
    other = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8))
    calibration = Calibration.collect(other, data)
    renamed = Calibration({"2": calibration["1"]})
    with pytest.raises(ValueError, match="2: expected calibration inputs of width 64, got 32"):
        calibrated_weights(model, linears(model), {"2": WANTED["2"]}, renamed)


class Sometimes(nn.Module):
    """The second layer reads the first one's input, but only in some batches; the third is never called."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        return self.a(x) + self.b(x) if len(x) > 40 else self.a(x)


@pytest.mark.parametrize("form", [list, iter])
def test_layers_that_only_some_batches_reach(form):
    torch.manual_seed(0)
    model = Sometimes()
    mix = torch.randn(32, 32)
    data = [torch.randn(n, 32) @ mix for n in (64, 40, 80, 24)]
    want = Sparse(sk.Block(16, 1), 0.5)
    found = calibrated_weights(model, linears(model), dict.fromkeys("abc", want), form(data))
    assert set(found) == {"a", "b"}, "nothing is known about what c reads"
    for name, seen in (("a", data), ("b", data[::2])):
        rows = torch.cat(seen)
        alone = calibrated_weights(model.get_submodule(name), {"": model.get_submodule(name)}, {"": want}, [rows])
        torch.testing.assert_close(found[name][0], alone[""][0], rtol=1e-3, atol=1e-4)


def test_a_gram_matrix_that_cannot_be_solved_names_the_layer(model):
    calibration = Calibration({"2": InputStatistics(-torch.eye(64))})
    with pytest.raises(ValueError, match=r"^2: expected calibration inputs whose Gram matrix can be factorised"):
        calibrated_weights(model, linears(model), {"2": WANTED["2"]}, calibration)
