"""docs/granularity.md: its pictures are current and true, and its table says which kernels there are."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

import sparsekern as sk
from sparsekern.layouts import Granularity
from sparsekern.plan import ConvRequest, conv_kernel_name, refusals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_granularities", ROOT / "tools" / "draw_granularities.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their own
    spec.loader.exec_module(module)
    return module


def test_pictures_are_current_and_shown(tool: ModuleType) -> None:
    text = (ROOT / "docs" / "granularity.md").read_text()
    assert {path.stem for path in tool.FOLDER.glob("*.svg")} == set(tool.PICTURES)
    for name, picture in tool.PICTURES.items():
        drawn = (tool.FOLDER / f"{name}.svg").read_text()
        assert drawn == tool.draw(picture), "run `make docs`"
        ElementTree.fromstring(drawn)
        assert f"](granularity/{name}.svg)" in text


def test_each_group_is_kept_or_dropped_whole(tool: ModuleType) -> None:
    weight = tool.example_weight()
    for name, picture in tool.PICTURES.items():
        mask, groups = picture.mask(weight).flatten(), picture.groups(weight).flatten()
        kept = torch.zeros(int(groups.max()) + 1).index_add_(0, groups, mask.float()) / groups.bincount()
        assert mask.float().mean() == 0.5 or name == "kernel-outputs"
        expected = {0.5} if name.startswith("nm") else {0.0, 1.0}
        assert set(kept.tolist()) == expected, name


def test_groups_are_what_the_names_say(tool: ModuleType) -> None:
    weight = tool.example_weight()
    # Of the group of one weight: how many outputs, inputs, rows and columns of kernels.
    extents = {
        "fine-grained": (1, 1, 1, 1), "vector": (1, 1, 1, 3), "kernel": (1, 1, 3, 3), "filter": (1, 4, 3, 3),
        "outputs": (4, 1, 1, 1), "block": (4, 4, 1, 1), "nm": (1, 4, 1, 1), "nm-outputs": (4, 4, 1, 1),
        "kernel-outputs": (4, 1, 3, 3),
    }  # fmt: skip
    assert set(extents) == set(tool.PICTURES)
    for name, extent in extents.items():
        groups = tool.PICTURES[name].groups(weight)
        places = (groups == groups[5, 2, 1, 1]).nonzero()
        assert tuple(len(places[:, side].unique()) for side in range(4)) == extent, name


@pytest.mark.needs_native
@pytest.mark.parametrize(
    ("granularity", "rows"),
    [
        (sk.Unstructured(), "r1"),
        (sk.Block(4, 1), "r4"),
        (sk.Block(8, 1), "r8"),
        (sk.Block(16, 1), "r16"),
        (sk.Block(16, 16), "r16"),
        (sk.NM(2, 4), "nm"),
        (sk.NM(2, 4, rows=16), "r16"),
        (sk.Channel(), None),
    ],
    ids=str,
)
def test_kernels_are_those_of_the_table(granularity: Granularity, rows: str | None, isa: str) -> None:
    request = ConvRequest(granularity, (64, 64, 3, 3), 1, torch.float32, "cpu")
    assert refusals(request) == {}
    if rows in ("r8", "r16") and not isa.startswith(("avx512", "amx")):
        rows = "r4"
    if rows == "r16" and "AMD" not in sk.Target.detect().cpu:
        rows = "r8"
    assert conv_kernel_name(request).startswith(f"conv_{rows}_" if rows else "kept_rows_conv")
