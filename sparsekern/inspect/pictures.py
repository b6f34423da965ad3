"""Small pictures out of characters: a histogram, a map of densities, the order in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import PackedWeight

BARS, BARS_ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
SHADES, SHADES_ASCII = " ░▒▓█", " .:+#"

MAP_WIDTH, MAP_HEIGHT = 64, 24
CORNER = 16
"""Outputs and inputs of the picture of the order in memory."""
CORNER_WIDTH = 72
"""Columns of a terminal that it may take, so that it fits into 80 with what stands before."""


def histogram(values: Tensor, bins: int = 48) -> list[int]:
    """Numbers of values in bins of equal width from ``-m`` to ``m``, the largest absolute value."""
    most = float(values.abs().max()) if values.numel() else 0.0
    return [int(n) for n in torch.histc(values.float(), bins, -most, most)] if most else [0] * bins


def bars(counts: Sequence[int], levels: str) -> str:
    """A histogram in one line; whatever is not zero can be seen."""
    most = max([*counts, 1])
    return "".join(levels[-(-n * (len(levels) - 1) // most)] for n in counts)


def density_map(mask: Tensor) -> Tensor:
    """Share of kept weights in each cell of a map of at most ``MAP_HEIGHT`` x ``MAP_WIDTH`` cells."""
    height, width = min(MAP_HEIGHT, mask.shape[0]), min(MAP_WIDTH, mask.shape[1])
    return F.adaptive_avg_pool2d(mask[None].float(), (height, width))[0]


def shades(densities: Tensor, levels: str) -> tuple[list[str], str]:
    """A map in characters, from the thinnest cell to the densest, and what they mean."""
    least, most = float(densities.min()), float(densities.max())
    if most - least < 1e-6:
        return [levels[-1] * densities.shape[1]] * densities.shape[0], f"each cell keeps {most:.1%}"
    steps = ((densities - least) / (most - least) * (len(levels) - 1)).round().int()
    lines = ["".join(levels[step] for step in row) for row in steps.tolist()]
    return lines, f"from {levels[0]!r} {least:.1%} to {levels[-1]!r} {most:.1%} kept"


def storage_order(packed: PackedWeight) -> Tensor:
    """For the first outputs and inputs, where in the values each weight lies; -1 where none is stored.

    It asks the granularity to gather the number of each place, and so knows no layout.
    """
    rows, columns = packed.shape
    # From 1, for what a layout pads with is zero.
    places = torch.arange(1, rows * columns + 1).view(rows, columns)
    of_slot = packed.granularity.gather(places, packed.parts).flatten()
    slots = torch.full((rows * columns + 1,), -1)
    slots[of_slot] = torch.arange(of_slot.numel())
    return slots[1:].view(rows, columns)[:CORNER, :CORNER].clone()


def corner(order: Tensor) -> list[str]:
    """The picture of :func:`storage_order`, as many inputs as fit."""
    cell = max(len(str(int(order.max()))), 2) + 1
    order = order[:, : CORNER_WIDTH // cell]
    head = " " * 4 + "".join(f"{column:>{cell}}" for column in range(order.shape[1]))
    lines = [
        f"{row:>4}" + "".join(f"{slot if slot >= 0 else '.':>{cell}}" for slot in slots)
        for row, slots in enumerate(order.tolist())
    ]
    return [head, *lines]
