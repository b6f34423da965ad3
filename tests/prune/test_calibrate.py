"""Streaming of calibration data: the right sums, and a model that does not notice."""

import copy

import pytest
import torch
from torch import nn

from sparsekern.prune import Calibration


class Attention(nn.Module):
    """Three layers on one tensor, one on another; one that is never called."""

    def __init__(self, width=12):
        super().__init__()
        self.q, self.k, self.v, self.out, self.unused = (nn.Linear(width, width) for _ in range(5))
        self.drop = nn.Dropout(0.5)

    def forward(self, x, mask=None):
        q, k, v = self.q(x), self.k(x), self.v(input=x)
        mixed = (q @ k.mT).softmax(-1) @ v
        return self.out(self.drop(mixed if mask is None else mixed * mask))


def batches(count=4, width=12):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5 + i, width, generator=generator) for i in range(count)]


def direct(xs):
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in xs]).double()
    return rows.T @ rows


def test_gram_equals_the_direct_product():
    data = batches()
    calibration = Calibration.collect(Attention().eval(), data)
    torch.testing.assert_close(calibration["q"].gram.double(), direct(data), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(calibration["q"].gram, calibration["q"].gram.T, rtol=0, atol=0)


@pytest.mark.parametrize("width", [7, 256, 300, 600])
def test_any_width_and_many_tokens_in_float32(width):
    # 20,000 tokens one panel width and more: the sums stay within some float32 roundings.
    model = nn.Linear(width, 3)
    data = [torch.randn(2000, width) + 1 for _ in range(10)]
    gram = Calibration.collect(model, data)[""].gram
    exact = direct(data)
    assert (gram - exact).norm() < 1e-5 * exact.norm()


def test_layers_on_one_tensor_share_one_matrix():
    calibration = Calibration.collect(Attention(), batches())
    assert calibration["q"] is calibration["k"] is calibration["v"]
    assert calibration["q"] is not calibration["out"]
    apart = Calibration.collect(Attention(), batches(), share=False)
    assert apart["q"] is not apart["k"]
    torch.testing.assert_close(apart["q"].gram, apart["k"].gram)


def test_layer_never_reached_is_named():
    calibration = Calibration.collect(Attention(), batches())
    assert "unused" not in calibration
    with pytest.raises(ValueError, match="unused"):
        calibration["unused"]


class Chain(nn.Module):
    """Equal values, but never the same tensor; the second input is the first one changed in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = x + 1
        y = self.a(x)
        y = y + self.b(x.mul_(2))
        return y + self.c(x.clone())


def test_tensor_changed_in_place_is_another_tensor():
    data = batches(width=6)
    calibration = Calibration.collect(Chain(), data)
    assert len({id(calibration[name]) for name in "abc"}) == 3
    torch.testing.assert_close(
        calibration["b"].gram.double(), direct([(x + 1) * 2 for x in data]), rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(calibration["b"].gram, calibration["c"].gram)


class Repeated(nn.Module):
    """One pair of layers applied three times, as in ALBERT."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        seen = [x]
        for _ in range(3):
            x = (self.a(x) + self.b(x)).tanh()
            seen.append(x)
        self.seen = seen[:3]
        return x


def test_layer_called_several_times():
    model, data, inputs = Repeated(), batches(width=6), []
    calibration = Calibration.collect(model, ((inputs.extend(getattr(model, "seen", [])), x)[1] for x in data))
    inputs.extend(model.seen)
    assert calibration["a"] is calibration["b"]
    torch.testing.assert_close(calibration["a"].gram.double(), direct(inputs), rtol=1e-5, atol=1e-3)


class Fickle(nn.Module):
    """Shares an input in the first batch only."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.batch = nn.Linear(6, 6), nn.Linear(6, 6), 0

    def forward(self, x):
        self.batch += 1
        return self.a(x) + self.b(x if self.batch == 1 else x * 2)


@pytest.mark.parametrize("skip", [False, True])
def test_sharing_that_ends_is_an_error_with_a_way_out(skip):
    model = Fickle()
    if skip:
        model.forward = lambda x: (model.a(x) + model.b(x)) if x.shape[1] == 5 else model.a(x)
    with pytest.raises(ValueError, match=r"(?s)a.*share=False|b.*share=False"):
        Calibration.collect(model, batches(width=6))
    calibration = Calibration.collect(Fickle(), batches(width=6), share=False)
    expected = direct([x if i == 0 else x * 2 for i, x in enumerate(batches(width=6))])
    torch.testing.assert_close(calibration["b"].gram.double(), expected, rtol=1e-5, atol=1e-3)


def test_model_that_runs_in_inference_mode():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        @torch.inference_mode()
        def forward(self, x):
            x = x + 1
            return self.b(self.a(x)) + self.b(x)

    calibration = Calibration.collect(Inner(), batches(width=6))
    torch.testing.assert_close(
        calibration["a"].gram.double(), direct([x + 1 for x in batches(width=6)]), rtol=1e-5, atol=1e-3
    )


def test_batch_of_no_tokens_is_skipped():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return torch.cat([self.a(x[:0]), self.b(x[:0])]) if len(x) == 3 else self.a(x) + self.b(x * 2)

    data = [torch.randn(3, 6), torch.randn(8, 6)]
    calibration = Calibration.collect(Experts(), data)
    torch.testing.assert_close(calibration["a"].gram.double(), direct(data[1:]), rtol=1e-5, atol=1e-4)
    assert calibration["a"] is not calibration["b"]


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, None), lambda x: [x, torch.ones(12)], lambda x: {"x": x}])
def test_forms_of_a_batch(form):
    calibration = Calibration.collect(Attention(), [form(x) for x in batches()])
    torch.testing.assert_close(calibration["k"].gram.double(), direct(batches()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("inputs", [torch.ones(2, 5, 12), {"x": torch.ones(2, 5, 12)}, None])
def test_single_batch_is_refused(inputs):
    with pytest.raises(TypeError, match="iterable of batches"):
        Calibration.collect(Attention(), inputs)


def test_no_batches_and_bad_numbers():
    with pytest.raises(ValueError, match="no batches"):
        Calibration.collect(Attention(), iter(()))
    with pytest.raises(ValueError, match=r"q.*NaN"):
        Calibration.collect(Attention(), [torch.full((1, 3, 12), float("nan"))])


def test_progress_and_generators():
    steps = []
    Calibration.collect(Attention(), batches(), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    steps.clear()
    Calibration.collect(Attention(), iter(batches()), progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (4, None)


@pytest.mark.parametrize("fail", [False, True])
def test_model_is_left_as_it_was(fail):
    model = Attention().train()
    model.drop.eval()
    before = copy.deepcopy(model.state_dict())
    data = [*batches(), torch.ones(2, 5, 7)] if fail else batches()
    if fail:
        with pytest.raises(RuntimeError):
            Calibration.collect(model, data)
    else:
        Calibration.collect(model, data)
    assert model.training and model.q.training and not model.drop.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


class Merging(nn.Module):
    """As adapters do: ``train(False)`` changes the weight."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def train(self, mode=True):
        if not mode:
            self.layer.weight.data += 1
        return super().train(mode)

    def forward(self, x):
        return self.layer(self.drop(x))


def test_eval_mode_is_entered_without_the_train_method():
    model, data = Merging(), batches(width=6)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calibration = Calibration.collect(model, data)
    assert torch.equal(model.layer.weight, before["layer.weight"]) and model.drop.training
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(calibration["layer"].gram.double(), direct(data), rtol=1e-5, atol=1e-4)
