"""Products on which the CUDA kernels are tried: every tail of tokens, outputs and inputs, and every epilogue."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from products import pack_random
from torch import Tensor

import sparsekern as sk

DTYPES = (torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu", "gelu", "silu")


@dataclass(frozen=True)
class Case:
    outputs: int
    inputs: int
    tokens: int
    granularity: sk.Granularity
    density: float
    dtype: torch.dtype
    activation: str = "none"
    bias: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        end = f"{'bias-' if self.bias else ''}{self.activation}"
        sizes = f"{self.tokens}x{self.inputs}-{self.outputs}"
        return f"{sizes}-{self.granularity.label}-{self.density}-{dtype}-{end}"

    def weight(self) -> sk.PackedWeight:
        return pack_random((self.outputs, self.inputs), self.granularity, self.density, self.dtype, seed=self.tokens)

    def numbers(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(1 + self.outputs)
        return torch.randn(*shape, generator=generator).to(self.dtype)


def _ends(count: int) -> list[tuple[torch.dtype, str, bool]]:
    """So many dtypes with epilogues, each of them in turn."""
    every = list(itertools.product(DTYPES, ACTIVATIONS, (False, True)))
    return [every[i * 5 % len(every)] for i in range(count)]


def block_cases(heights: tuple[int, ...], tokens: tuple[int, ...]) -> list[Case]:
    """Blocks of multiples of a kernel's height, of which the grid covers more than the weight."""
    sizes = []
    for height, (i, m) in itertools.product(heights, enumerate(tokens)):
        depth = (16, 32, 48, 64)[i % 4]
        # Whole tiles of 128, a tail of blocks, a tail within a block, odd numbers.
        outputs = (256, 128 + height, 128 + height + 8, height + 13, height)[i % 5]
        inputs = (128, 2 * depth + 8, 3 * depth + 5, 4 * depth, depth)[i % 5]
        density = (0.5, 0.25, 0.9, 1.0, 0.1, 0.0)[i % 6]
        sizes.append((outputs, inputs, m, sk.Block(height, depth), density))
    return [Case(*size, *end) for size, end in zip(sizes, _ends(len(sizes)), strict=True)]


def nm_cases(tokens: tuple[int, ...]) -> list[Case]:
    sizes = []
    for i, m in enumerate(tokens):
        outputs = (128, 16, 17, 144, 256, 3, 130)[i % 7]
        inputs = (64, 32, 96, 4, 130, 256, 77, 200)[i % 8]
        sizes.append((outputs, inputs, m, sk.NM(2, 4), 0.5))
    return [Case(*size, *end) for size, end in zip(sizes, _ends(len(sizes)), strict=True)]


def long_cases(granularity: sk.Granularity, tokens: tuple[int, ...]) -> list[Case]:
    """So many inputs that each stage of a pipeline is filled several times."""
    sizes = [(granularity.rows + 9, 2100 + 64 * i, m, granularity, 0.6) for i, m in enumerate(tokens)]
    return [Case(*size, *end) for size, end in zip(sizes, _ends(len(sizes)), strict=True)]


MANY = (1, 7, 8, 17, 31, 64, 100, 127, 128, 129, 130, 200, 256, 16, 2)
FEW = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33)
