"""Random weights, and what a product must be within rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import sparsekern as sk


def expected(x: Tensor, dense: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """The product in float64, and the size of the numbers that are summed to it, for tolerances."""
    wide, weight = x.double(), dense.double()
    y = wide @ weight.T
    size = wide.abs() @ weight.abs().T
    if bias is not None:
        y, size = y + bias.double(), size + bias.double().abs()
    apply = {
        "none": lambda y: y, "relu": torch.relu, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu
    }  # fmt: skip
    return apply[activation](y), size


def assert_near(y: Tensor, x: Tensor, dense: Tensor, bias: Tensor | None = None, activation: str = "none") -> None:
    """Within one rounding of the dtype, and what float32 sums lose."""
    wanted, size = expected(x, dense, bias, activation)
    unit = torch.finfo(y.dtype).eps
    error = (y.double() - wanted).abs()
    allowed = 0.51 * unit * wanted.abs() + 2e-6 * size + torch.finfo(y.dtype).smallest_normal * unit
    assert not y.isnan().any()
    worst = (error - allowed).argmax()
    assert bool((error <= allowed).all()), f"{y.flatten()[worst]} for {wanted.flatten()[worst]}"


def assert_added_in_order(multiply: Callable[..., Tensor], kernel: str, granularity: sk.Granularity) -> None:
    """Of a product in three parts: numbers of which float32 tells the order in which they are added."""
    step = 8 * (32 if isinstance(granularity, sk.NM) else 16)  # inputs that the warps of a part take at once
    weight, x = torch.zeros(57, 4 * step), torch.zeros(3, 4 * step)
    for part, number in enumerate((2.0**24, 1.0, -(2.0**24))):
        weight[:, part * step] = 1
        x[:, part * step] = number
    mask = None if isinstance(granularity, sk.NM) else torch.ones_like(weight, dtype=torch.bool)
    y = multiply(kernel, sk.pack(weight.bfloat16(), granularity, mask), x.bfloat16(), parts=3)
    assert not y.any(), f"the order of the parts: {y[0, 0]}"  # 2^24 + 1 is 2^24; last to first it would be 1


def pack_random(
    shape: Sequence[int], granularity: sk.Granularity, density: float, dtype: torch.dtype, seed: int
) -> sk.PackedWeight:
    """A random weight of about that density, of random blocks."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator)
    mask = None
    if isinstance(granularity, sk.Block):
        grid = granularity.grid((shape[0], shape[1]))
        kept = torch.rand(grid, generator=generator) < density
        kept[-1, -1] |= density > 0
        mask = granularity.spread(kept, (shape[0], shape[1]))
    else:
        mask = sk.make_mask(weight, granularity)
    return sk.pack(weight.to(dtype), granularity, mask)
