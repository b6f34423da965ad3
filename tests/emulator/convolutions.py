"""Convolutions on which the kernels of GPUs are tried, and what they must be within rounding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern.ops import APPLY
from sparsekern.ops_conv import layout_of


@dataclass(frozen=True)
class Convolution:
    """A convolution with blocks; the first of two numbers is that of the height."""

    block: tuple[int, int]
    outputs: int
    channels: int  # of a group
    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 2

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.outputs, self.channels, *self.kernel

    @property
    def numbers(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups, as ops take them."""
        return [*self.stride], [*self.padding], [*self.dilation], self.groups

    def packed(self, dtype: torch.dtype = torch.float32, sparsity: float = 0.5) -> sk.PackedWeight:
        weight, granularity = torch.randn(self.shape).to(dtype), sk.Block(*self.block)
        return sk.pack(weight, granularity, sk.make_mask(torch.rand(self.shape), granularity, sparsity))

    def image(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Channels-last."""
        images = torch.randn(self.batch, self.channels * self.groups, *self.size)
        return images.to(dtype).to(memory_format=torch.channels_last)


CONVOLUTIONS = [
    Convolution((16, 16), 40, 32, (3, 3), (6, 5), padding=(1, 1)),  # small blocks, and a tail of outputs
    Convolution((16, 32), 16, 96, (2, 3), (5, 7), stride=(2, 1), dilation=(1, 2)),  # channels no power of two
    Convolution((32, 128), 64, 128, (1, 3), (4, 4), padding=(0, 2), batch=1),  # deep blocks
    Convolution((64, 32), 130, 32, (3, 1), (9, 8), stride=(3, 2), padding=(2, 0)),
    Convolution((128, 16), 129, 48, (3, 3), (4, 9), padding=(3, 3), dilation=(2, 3)),  # taps that see zeros alone
    Convolution((16, 64), 64, 64, (2, 2), (5, 5), groups=2, padding=(1, 0)),
    Convolution((32, 16), 96, 16, (3, 3), (4, 3), groups=3, padding=(1, 1)),
    Convolution((16, 16), 20, 32, (1, 1), (7, 5), stride=(2, 2)),  # a product, but for its stride
    Convolution((64, 64), 64, 64, (3, 3), (13, 11), padding=(1, 1), batch=3),  # several tiles of pixels
    Convolution((16, 16), 16, 16, (3, 3), (1, 1), padding=(1, 1)),  # one pixel
]


def draw(seed: int, heights: Sequence[int] = (16, 16, 32, 64), groups: Sequence[int] = (1, 1, 1, 2, 3)) -> Convolution:
    """Any convolution, but a small one."""
    chance = random.Random(seed)
    rows, cols, count = chance.choice(heights), chance.choice([16, 16, 32, 64, 128]), chance.choice(groups)
    kernel, dilation = [(chance.randint(1, 4), chance.randint(1, 4)) for _ in range(2)]
    padding = (chance.randint(0, 4), chance.randint(0, 4))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in range(2)]
    return Convolution(
        block=(rows, cols),
        outputs=count * rows * chance.choice([1, 2]) if count > 1 else rows + chance.randint(0, 40),
        channels=cols * chance.choice([1, 1, 2, 3]),
        kernel=kernel,
        size=(least[0] + chance.randint(0, 6), least[1] + chance.randint(0, 6)),
        stride=(chance.randint(1, 4), chance.randint(1, 4)),
        padding=padding,
        dilation=dilation,
        groups=count,
        batch=chance.randint(1, 3),
    )


def assert_convolved(
    case: Convolution,
    y: Tensor,
    x: Tensor,
    packed: sk.PackedWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    unit: float = 1.0,
) -> None:
    """Within ``unit`` of the dtype and what float32 sums lose of float64, in the memory format of the input."""
    weight, wide, shift = packed.to_dense().double(), x.double(), None if bias is None else bias.double()
    wanted = APPLY[activation](F.conv2d(wide, weight, shift, *case.numbers))
    terms = F.conv2d(wide.abs(), weight.abs(), None if shift is None else shift.abs(), *case.numbers)
    allowed = unit * torch.finfo(y.dtype).eps * wanted.abs() + 2e-6 * terms + 1e-7
    assert y.dtype == x.dtype and y.shape == wanted.shape and layout_of(y) == layout_of(x)
    assert not y.isnan().any(), "NaN for numbers"
    excess = ((y.double() - wanted).abs() / allowed).max() if y.numel() else 0
    assert excess <= 1, f"{excess} times what rounding allows for"
