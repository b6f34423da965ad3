"""What the tests of the block kernels share: the kernels that run here, random weights, and what to expect.

Tolerances are the a-priori rounding bounds of a dot product, never fitted to what came out.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern import _native
from sparsekern.layouts import Block

if _native.native is None:
    pytest.skip(f"no native kernels: {_native.failure}", allow_module_level=True)

UNIT = 2.0**-24  # unit roundoff of float32
ACTIVATIONS = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True)
class Kernel:
    name: str
    rows: int
    multiple: bool

    @property
    def block_rows(self) -> list[int]:
        """Block heights to try: some multiples, or the only one that it takes."""
        if self.rows == 1 and self.multiple:  # those that no other kernel takes
            return [1, 2, 3, 12]
        return [i * self.rows for i in (1, 2, 3, 4, 5)] if self.multiple else [self.rows]


def kernels(dtype: str) -> list[Kernel]:
    """Those for weights of the dtype that run here."""
    records = [r for r in sk.kernels() if r.op == "block_linear" and r.runs_here]
    return [Kernel(r.name, r.rows, r.multiple) for r in records if dtype in r.dtypes]


KERNELS = kernels("float32")
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
every_block = pytest.mark.parametrize(
    ("kernel", "rows"), [pytest.param(k, r, id=f"{k.name}-{r}") for k in KERNELS for r in k.block_rows]
)


@dataclass
class Weight:
    """A random block matrix: what the op takes, and the same in float64."""

    parts: dict[str, Tensor]
    dense: Tensor
    mask: Tensor

    @classmethod
    def random(cls, shape: tuple[int, int], rows: int, cols: int, density: float) -> Weight:
        block = Block(rows, cols)
        keep = torch.rand(block.grid(shape)) < density
        return cls.of_blocks(shape, rows, cols, keep)

    @classmethod
    def of_blocks(cls, shape: tuple[int, int], rows: int, cols: int, keep: Tensor) -> Weight:
        block = Block(rows, cols)
        mask = block.spread(keep, shape)
        weight = torch.randn(shape) * mask
        return cls(block.pack(weight, mask), weight.double(), mask)

    def __call__(self, x: Tensor, kernel: str, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        return torch.ops.sparsekern.block_linear(
            x,
            self.parts["values"],
            self.parts["columns"],
            self.parts["offsets"],
            bias,
            *self.dense.shape,
            activation,
            kernel,
        )


@dataclass
class Expected:
    """The product in float64, and how far a float32 sum of these terms may be from it, in any order."""

    product: Tensor
    bound: Tensor

    @classmethod
    def of(cls, x: Tensor, weight: Weight) -> Expected:
        terms = weight.mask.sum(1) + 4  # partial sums add a few more roundings than there are terms
        magnitude = x.double().abs() @ weight.dense.abs().T
        return cls(x.double() @ weight.dense.T, magnitude * (terms * UNIT * 1.01) + 1e-37)

    def check(self, y: Tensor, bias: Tensor | None = None, activation: str = "none", what: str = "") -> None:
        tokens = y.shape[0]
        product, bound = self.product[:tokens], self.bound[:tokens]
        if bias is not None:
            product = product + bias.double()
            bound = bound * (1 + UNIT) + bias.double().abs() * 8 * UNIT
        wanted = ACTIVATIONS[activation](product)
        if activation in ("gelu", "silu"):
            bound = 1.13 * bound + 1e-6 * product.abs().clamp(min=1)  # 1.13: the steepest slope of both
        assert y.shape == wanted.shape, what
        error = (y.double() - wanted).abs()
        worst = (error / bound).max() if error.numel() else torch.tensor(0.0)
        assert worst <= 1, f"{what}: error is {float(worst):.3g} times the bound"
