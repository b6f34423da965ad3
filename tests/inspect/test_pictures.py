"""The pictures, against what they were made from."""

import pytest
import torch

import sparsekern as sk
from sparsekern.inspect import pictures

FORMATS = [sk.Block(4, 1), sk.Block(4, 3), sk.Unstructured(), sk.NM(2, 4), sk.NM(1, 4, rows=4), sk.Channel()]


def test_histogram_counts_every_value_once() -> None:
    values = torch.randn(1000)
    counts = pictures.histogram(values, bins=8)
    edge = float(values.abs().max())
    assert sum(counts) == 1000
    assert counts[0] == int((values < -0.75 * edge).sum()) and counts[7] == int((values >= 0.75 * edge).sum())
    assert pictures.histogram(torch.zeros(3), bins=4) == pictures.histogram(torch.zeros(0), bins=4) == [0] * 4


def test_bars_show_whatever_is_not_zero() -> None:
    assert pictures.bars([0, 1, 500, 1000], " .o#") == " .o#"
    assert pictures.bars([0, 0], " .o#") == "  "


def test_density_map_of_whole_cells() -> None:
    mask = torch.rand(240, 640) < 0.3
    cells = mask.float().view(24, 10, 64, 10).mean((1, 3))
    assert torch.allclose(pictures.density_map(mask), cells)
    # Smaller than the map: one cell a weight.
    assert torch.equal(pictures.density_map(mask[:5, :7]), mask[:5, :7].float())
    assert pictures.density_map(torch.ones(1000, 3)).shape == (24, 3)


def test_shades_go_from_the_thinnest_cell_to_the_densest() -> None:
    lines, meaning = pictures.shades(torch.tensor([[0.1, 0.3], [0.5, 0.2]]), " .:+#")
    assert lines == [" :", "#."]
    assert meaning == "from ' ' 10.0% to '#' 50.0% kept"
    assert pictures.shades(torch.full((1, 2), 0.5), " .:+#") == (["##"], "each cell keeps 50.0%")


@pytest.mark.parametrize("granularity", FORMATS, ids=lambda g: g.spec)
def test_storage_order_leads_to_each_value(granularity: sk.Block) -> None:
    # No multiple of any block, so that there is padding.
    weight = torch.randn(21, 19)
    mask = sk.make_mask(weight, granularity, None if granularity.implied_sparsity else 0.5)
    packed = sk.pack(weight, granularity, mask)
    order = pictures.storage_order(packed)
    assert order.shape == (16, 16)
    values, stored = packed.values.flatten(), order >= 0
    # Single rows of n:m store places beyond the mask, where a group keeps less than n of the ones it has.
    assert torch.equal(stored | mask[:16, :16], stored)
    assert torch.equal(torch.where(stored, values[order.clamp_min(0)], 0), (weight * mask)[:16, :16])


def test_corner_fits_beside_its_margin() -> None:
    order = torch.arange(16 * 16).view(16, 16) * 7919
    order[3, 1] = -1
    lines = pictures.corner(order)
    assert len(lines) == 17 and max(map(len, lines)) <= 80
    assert lines[0].split() == [str(column) for column in range(len(lines[0].split()))]
    assert lines[4].split()[:3] == ["3", str(48 * 7919), "."]
