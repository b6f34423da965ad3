"""Every CPU kernel with numbers that are none, vanish or overflow, and its activations."""

from __future__ import annotations

import pytest
import torch
from block_cases import ACTIVATIONS, Kernel, Weight, every_kernel
from torch import Tensor

# ---- special values ------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("cols", [1, 3])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_reach_what_they_touch_and_nothing_else(kernel: Kernel, cols: int, special: float) -> None:
    shape = (2 * kernel.rows + 1, 37)
    weight = Weight.random(shape, kernel.rows, cols, 0.4)
    for tokens in (1, 4, 6, 16, 26, 49):
        clean = torch.randn(tokens, 37)
        for token in {0, tokens // 2, tokens - 1}:
            for place in (0, 36):
                x = clean.clone()
                x[token, place] = special
                y, without = weight(x, kernel.name), weight(clean, kernel.name)
                others = torch.arange(tokens) != token
                assert torch.equal(y[others], without[others])
                terms = (x[token].double() * weight.dense).masked_fill(~weight.mask, 0).sum(1)
                touched = weight.mask[:, place]
                assert torch.equal(y[token][~touched], without[token][~touched])
                assert torch.equal(y[token][touched].double().nan_to_num(1.5), terms[touched].nan_to_num(1.5))


@every_kernel
def test_nan_passes_through_activations(kernel: Kernel) -> None:
    weight = Weight.random((kernel.rows, 20), kernel.rows, 1, 1.0)
    for tokens in (1, 17):
        x = torch.full((tokens, 20), float("nan"))
        for activation in ACTIVATIONS:
            assert weight(x, kernel.name, activation=activation).isnan().all(), activation


@every_kernel
def test_negative_zeros_and_denormals_are_zeros_and_small_numbers(kernel: Kernel) -> None:
    weight = Weight.random((kernel.rows + 3, 20), kernel.rows, 1, 0.5)
    for activation in ACTIVATIONS:
        for tokens in (2, 19):
            x = torch.full((tokens, 20), -0.0)
            assert (weight(x, kernel.name, None, activation) == 0).all()
            assert (weight(x, kernel.name, torch.full((kernel.rows + 3,), -0.0), activation) == 0).all()
    x = torch.randn(19, 20) * 1e-40
    assert torch.allclose(weight(x, kernel.name).double(), x.double() @ weight.dense.T, rtol=0, atol=1e-43)


# ---- activations ---------------------------------------------------------------------------------


def through_activation(kernel: Kernel, inputs: Tensor, activation: str) -> Tensor:
    """Passes numbers through the epilogue alone: an identity of one block column."""
    keep = torch.ones(1, 1, dtype=torch.bool)
    weight = Weight.of_blocks((kernel.rows, 1), kernel.rows, 1, keep)
    weight.parts["values"].fill_(1.0)
    return weight(inputs[:, None], kernel.name, None, activation)[:, 0]


@every_kernel
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_against_float64(kernel: Kernel, activation: str) -> None:
    exponents = torch.logspace(-37, 38, 1500, dtype=torch.float64).float()
    near = torch.linspace(-20, 20, 200_001)
    far = torch.linspace(-200, 200, 20_001)
    x = torch.cat([near, far, exponents, -exponents, torch.tensor([0.0, 3.4e38, -3.4e38])])
    y, wanted = through_activation(kernel, x, activation).double(), ACTIVATIONS[activation](x.double())
    if activation == "relu":
        assert torch.equal(y, wanted)
        return
    error = (y - wanted).abs() / x.double().abs().clamp(min=1)
    worst = int(error.argmax())
    assert error[worst] < 1e-6, f"{activation}({float(x[worst])}) = {float(y[worst])}, not {float(wanted[worst])}"
    # Where the true value has vanished, ours is nearly nothing too, however large the input.
    vanished = x < -30
    assert y[vanished].abs().max() < 1e-6


@every_kernel
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_of_infinity(kernel: Kernel, activation: str) -> None:
    y = through_activation(kernel, torch.tensor([float("inf"), float("-inf")] * 17), activation)
    assert (y[::2] == float("inf")).all()
    assert y[1::2].abs().max() < 1e-6  # the limit, where F.gelu and F.silu return NaN
