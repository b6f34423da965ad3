"""What the repository says in two places agrees."""

import importlib.util
import platform
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sparsekern as sk
from sparsekern._native import native
from sparsekern.plan import ConvRequest, Request, select, select_conv

ROOT = Path(__file__).resolve().parents[2]
# The table lists every kernel of the library; a library for another processor has fewer.
full_table = pytest.mark.skipif(
    native is None or platform.machine() not in ("x86_64", "AMD64"), reason="needs the native library for x86-64"
)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_tables", ROOT / "tools" / "generate_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@full_table
@pytest.mark.parametrize("name", ["README.md", "docs/kernels.md"])
def test_generated_tables_are_current(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "<!-- table: " in text
    assert generator().render(text) == text, "run `make docs`"


@full_table
@pytest.mark.parametrize("granularity", [sk.Unstructured(), sk.Block(16, 1), sk.NM(2, 4), sk.Channel()], ids=str)
def test_the_support_table_says_who_multiplies(granularity: sk.layouts.Granularity) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in generator().support_matrix().splitlines()]
    ways = {"cpu": "kernel", "rows": "kept rows", "reference": "reference"}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        conv = select_conv(ConvRequest(granularity, (16, 16, 3, 3), 1, dtype, "cpu"))
        linear = select(Request(granularity, (16, 16), dtype, "cpu"))
        for layer, backend in (("Linear", linear), ("Conv2d", conv)):
            kind, weights = f"{granularity.kind} (any)", str(dtype).removeprefix("torch.")
            said = [row[3:] for row in rows if row[:2] == [layer, kind] and weights in row[2].split(", ")]
            assert said == [[ways[backend.name]] * 5]


def test_pre_commit_pins_the_tools_of_the_dev_extra() -> None:
    pin = r"((?:ruff|clang-format|codespell)==[\d.]+)"
    hooks = set(re.findall(pin, (ROOT / ".pre-commit-config.yaml").read_text()))
    assert hooks == set(re.findall(pin, (ROOT / "pyproject.toml").read_text()))


def test_makefile_installs_the_demo_data_that_doctor_names() -> None:
    from sparsekern.cli.doctor import DEMO_DATA

    assert f"DEMO_DATA := {' '.join(DEMO_DATA)}\n" in (ROOT / "Makefile").read_text()


def test_make_bench_keeps_its_results() -> None:
    ran = subprocess.run(["make", "-n", "bench", "BENCH_RESULTS=r.jsonl"], cwd=ROOT, capture_output=True, text=True)
    assert "bench/linear.py --out r.jsonl" in ran.stdout and "bench/summarize.py r.jsonl" in ran.stdout


def test_contributing_names_every_file_that_lists_the_instruction_sets() -> None:
    sections = (ROOT / "CONTRIBUTING.md").read_text().split("\n## ")
    (section,) = (text for text in sections if text.startswith("An instruction set\n"))
    code = [path for part in ("csrc", "tools", "tests/native") for path in (ROOT / part).rglob("*.*")]
    listing = [
        p for p in code if p.suffix in (".h", ".cpp", ".inc", ".py") and re.search(r"kAvx2|\bavx2\b", p.read_text())
    ]
    assert len(listing) > 8
    assert not [path for path in listing if path.name not in section]


def test_contributing_names_the_shortest_granularity() -> None:
    files = [path for path in (ROOT / "sparsekern/layouts").glob("*.py") if "\n@register\n" in path.read_text()]
    shortest = min(files, key=lambda path: len(path.read_text().splitlines()))
    assert f"`layouts/{shortest.name}` is the shortest example" in (ROOT / "CONTRIBUTING.md").read_text()


def test_local_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
