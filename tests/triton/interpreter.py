"""What the tests under Triton's interpreter share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start: test_interpreted.py sets it", allow_module_level=True)

from sparsekern.backends.triton import ops, ops_conv

APPLY: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@pytest.fixture(autouse=True)
def guard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel writes all of its output, and nothing around it."""

    class Guarded:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: Any, **options: Any) -> None:
                names = self.kernel.arg_names
                y = arguments[names.index("y")]
                around = torch.full((y.numel() + 2 * 512,), 7.0, dtype=y.dtype)
                inside = around[512:-512].view(y.shape).fill_(float("nan"))
                self.kernel[grid](*(inside if part is y else part for part in arguments), **options)
                assert (around[:512] == 7).all() and (around[-512:] == 7).all()
                y.copy_(inside)

            return launch

    monkeypatch.setattr(ops, "wrap_triton", Guarded)
    monkeypatch.setattr(ops_conv, "wrap_triton", Guarded)


def check(y: Tensor, x: Tensor, packed: sk.PackedWeight, bias: Tensor | None = None, activation: str = "none") -> None:
    """Compare with float64: sums are rounded as float32, and the result once to the dtype.

    Not to the nearest number: where float32 becomes bfloat16, the interpreter cuts off.
    """
    weight, numbers = packed.to_dense().double(), x.double()
    shift = torch.zeros(packed.shape[0], dtype=torch.float64) if bias is None else bias.double()
    expected = APPLY[activation](numbers @ weight.T + shift)
    terms = numbers.abs() @ weight.T.abs() + shift.abs()
    allowed = torch.finfo(y.dtype).eps * expected.abs() + 4 * torch.finfo(torch.float32).eps * terms + 1e-7
    assert y.dtype == x.dtype and y.shape == expected.shape
    assert not y.isnan().any()
    excess = ((y.double() - expected).abs() / allowed).max() if y.numel() else 0
    assert excess <= 1, f"{excess} times what rounding allows"
