"""Draw the pictures of docs/granularity.md: one weight of a convolution, pruned at each granularity.

`make docs` writes them; tests/packaging/test_granularity.py fails when one is stale.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import Granularity, matrix_of, weight_of

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "granularity"
SHAPE = OUT, IN, KH, KW = 8, 4, 3, 3
# Without CSS variables, which not every program that shows an SVG knows.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.kept { fill: #7aa7cf; } .group { fill: #c2410c; } .gone { fill: none; stroke: #d8dee4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .kept { fill: #40709c; } .group { fill: #ff9d5c; } .gone { stroke: #343b44; } }
"""
LEFT, TOP, ROW = 64, 26, 24
SMALL, WIDE = 6, 11
"""Sides of a weight's square among kernels and in the matrix."""


@dataclass(frozen=True)
class Picture:
    """A granularity to draw.

    Attributes:
        granularity: of the matrix that it is a granularity of.
        by_kernel: whether that is ``[out, in * kh * kw]``, where a kernel's weights lie side by side; else it is the
            one that kernels see, ``[out, kh * kw * in]``.
        sparsity: None where it is implied.
    """

    granularity: Granularity
    by_kernel: bool = False
    sparsity: float | None = 0.5

    def mask(self, weight: Tensor) -> Tensor:
        """Bool ``[out, in, kh, kw]``, True = kept."""
        if self.by_kernel:
            return sk.make_mask(weight.flatten(1), self.granularity, self.sparsity).view_as(weight)
        return sk.make_mask(weight, self.granularity, self.sparsity)

    def groups(self, weight: Tensor) -> Tensor:
        """Number of the group of each weight, ``[out, in, kh, kw]``; of n:m, of the weights of which n are kept."""
        matrix = weight.flatten(1) if self.by_kernel else matrix_of(weight)
        numbers = torch.arange(self.granularity.group_sums(matrix).numel())
        shape = (matrix.shape[0], matrix.shape[1])
        numbers = self.granularity.spread(numbers.view(self.granularity.group_sums(matrix).shape), shape)
        if isinstance(self.granularity, sk.NM):
            numbers = numbers // self.granularity.m  # the columns are a multiple of m
        return numbers.view_as(weight) if self.by_kernel else weight_of(numbers, (KH, KW))


PICTURES = {
    "fine-grained": Picture(sk.Unstructured()),
    "vector": Picture(sk.Block(1, KW), by_kernel=True),
    "kernel": Picture(sk.Block(1, KH * KW), by_kernel=True),
    "filter": Picture(sk.Channel()),
    "outputs": Picture(sk.Block(4, 1)),
    "block": Picture(sk.Block(4, 4)),
    "nm": Picture(sk.NM(2, 4), sparsity=None),
    "nm-outputs": Picture(sk.NM(2, 4, rows=4), sparsity=None),
    "kernel-outputs": Picture(sk.Block(4, KH * KW), by_kernel=True),
}


def example_weight() -> Tensor:
    """The weight of all pictures, ``[out, in, kh, kw]``: the same with every version of PyTorch."""
    numbers = random.Random(3)
    return torch.tensor([numbers.gauss(0, 1) for _ in range(OUT * IN * KH * KW)]).view(SHAPE)


def draw(picture: Picture) -> str:
    """An SVG: the kernels of each output and input, and the same weights as the matrix that kernels see."""
    weight = example_weight()
    mask, groups = picture.mask(weight), picture.groups(weight)
    # One that is kept, near the middle of the matrix.
    chosen = groups == groups[mask.nonzero()[int(mask.sum()) * 2 // 5].unbind()]
    kinds = {"gone": ~mask, "kept": mask & ~chosen, "group": mask & chosen}
    matrix_left = LEFT + IN * (KW * SMALL + 8) + 40
    width = matrix_left + KH * KW * (IN * WIDE + 5) + 8
    height = TOP + OUT * ROW + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{picture.granularity.label}: kept weights of a convolution</title><style>{STYLE}</style>",
        _text(LEFT, 14, f"{OUT} x {IN} kernels"),
        _text(matrix_left, 14, f"the matrix [{OUT}, {KH} x {KW} x {IN}]"),
    ]
    parts += [_text(0, TOP + out * ROW + 13, f"output {out}") for out in range(OUT)]
    for kind, where in kinds.items():
        places = where.nonzero().tolist()
        squares = "".join(path for place in places for path in _squares(*place, matrix_left))
        parts.append(f'<path class="{kind}" d="{squares}"/>')
    for pixel in range(KH * KW):
        left = matrix_left + pixel * (IN * WIDE + 5)
        parts.append(_text(left, TOP + OUT * ROW + 10, f"{pixel // KW},{pixel % KW}"))
    return "\n".join([*parts, "</svg>\n"])


def _squares(out: int, channel: int, y: int, x: int, matrix_left: int) -> Iterator[str]:
    """A weight among the kernels, and in the matrix."""
    top = TOP + out * ROW
    left = LEFT + channel * (KW * SMALL + 8)
    yield f"M{left + x * SMALL} {top + y * SMALL}h{SMALL - 1}v{SMALL - 1}h-{SMALL - 1}z"
    left = matrix_left + (y * KW + x) * (IN * WIDE + 5) + channel * WIDE
    yield f"M{left} {top + 1}h{WIDE - 2}v15h-{WIDE - 2}z"


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}">{text}</text>'


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(picture))
