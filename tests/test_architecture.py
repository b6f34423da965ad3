"""The promises of the architecture: import directions, and one file to add a granularity or a back end."""

import ast
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern import layouts
from sparsekern.cli import main as cli
from sparsekern.plan import Backend, KernelRecord, Request, backends, register_backend, select

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(sk.__file__).parent

# What each part may import of the others. Data flows one way: weight -> prune -> layouts -> plan -> ops
# -> backends; neither front ends (prune, nn) nor back ends know each other.
ALLOWED = {
    "_native": {"_C"},
    "layouts": set(),
    "listings": set(),
    "report": set(),
    "ops": {"layouts"},
    "ops_conv": {"layouts", "ops"},
    "ops_channel": {"layouts", "ops", "ops_conv"},
    "ops_grad": {"layouts", "ops"},
    "plan": {"layouts", "listings", "_native"},
    "backends": {"layouts", "listings", "plan", "ops", "ops_conv", "_native"},
    "prune": {"layouts", "plan"},
    "nn": {"layouts", "ops", "ops_conv", "plan", "prune", "report"},
    "io": {"layouts", "ops", "ops_conv", "nn"},
    "demo": {"layouts", "plan", "prune", "nn", "report"},
    "inspect": {"layouts", "listings", "plan", "prune", "io"},
    "cli": {"layouts", "listings", "plan", "prune", "nn", "io", "report", "demo", "inspect", "ops", "_native"},
}


def imports_of(file: Path, package: Path) -> Iterator[str]:
    """Modules that a file imports anywhere in it, by absolute name."""
    home = [package.name, *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """The part of the package that an absolute name belongs to; the package itself is ``""``."""
    _, _, rest = name.partition(".")
    part = rest.split(".")[0]
    return part if any((PACKAGE / f"{part}{suffix}").exists() for suffix in ("", ".py", ".pyi")) else ""


@pytest.mark.parametrize("part", sorted({p.relative_to(PACKAGE).parts[0] for p in PACKAGE.rglob("*.py")}))
def test_import_directions(part: str) -> None:
    files = sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / part]
    part = part.removesuffix(".py")
    if part in ("__init__", "__main__"):
        return
    assert part in ALLOWED, f"sparsekern.{part} is new: say in ALLOWED what it may import"
    for file in files:
        for name in imports_of(file, PACKAGE):
            if name.split(".")[0] == PACKAGE.name:
                target = part_of(name)
                # The bare package holds the public names, which are made from these parts, and the version.
                allowed = {part, *ALLOWED[part], *([""] if part == "cli" else [])}
                assert target in allowed, f"{file.relative_to(ROOT)} imports {name}, which {part} may not"


def test_import_directions_are_really_read(tmp_path: Path) -> None:
    package = tmp_path / "sparsekern"
    (package / "layouts").mkdir(parents=True)
    file = package / "layouts" / "bad.py"
    file.write_text(
        "import torch\nfrom ..nn import linear\nfrom .. import ops\n"
        "def f():\n    from sparsekern.plan.select import select\n    from .block import Block\n"
    )
    found = set(imports_of(file, package))
    assert found == {
        "torch", "sparsekern.nn.linear", "sparsekern.ops", "sparsekern.plan.select.select",
        "sparsekern.layouts.block.Block",
    }  # fmt: skip
    assert part_of("sparsekern.plan.select.select") == "plan" and part_of("sparsekern.ops") == "ops"


@pytest.mark.parametrize("folder", ["core", "cpu"])
def test_kernel_code_includes_neither_torch_nor_pybind11(folder: str) -> None:
    sources = [p for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in (".h", ".cpp", ".inc")]
    assert sources
    for source in sources:
        includes = [line for line in source.read_text().splitlines() if line.lstrip().startswith("#include")]
        assert not [line for line in includes if any(word in line for word in ("torch", "ATen", "c10", "pybind11"))]


def test_files_are_short_enough_to_read() -> None:
    folders = ("csrc", "sparsekern", "tests", "bench", "tools", "examples")
    code = (".py", ".h", ".cpp", ".inc", ".cu", ".cuh")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in code]
    assert len(files) > 40
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert not {name: lines for name, lines in lengths.items() if lines > 500}


# ---- a granularity is one file -------------------------------------------------------------------

DIAGONAL = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsekern.layouts import Granularity, register
from sparsekern.layouts.granularity import require, require_matrix


@register
@dataclass(frozen=True)
class Diagonal(Granularity):
    """Bands of ``width`` neighbouring diagonals, which wrap around, are kept or dropped together."""

    width: int
    kind: ClassVar[str] = "diagonal"
    part_names: ClassVar[tuple[str, ...]] = ("values", "bands")

    @property
    def label(self):
        return f"diagonal {self.width}"

    def _band(self, shape):
        rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])[None]
        return (columns - rows) % shape[1] // self.width

    def check_shape(self, shape, what="weight"):
        require_matrix(shape, what)
        require(shape[1] % self.width == 0, f"{what}: {shape[1]} inputs are no multiple of {self.width} diagonals")

    def group_sums(self, scores):
        bands = self._band(scores.shape)
        return scores.new_zeros(int(bands.max()) + 1).index_add_(0, bands.flatten(), scores.flatten())

    def spread(self, groups, shape):
        return groups[self._band(shape)]

    def _places(self, parts, shape):
        return self._band(shape)[None] == parts["bands"].to(torch.int64)[:, None, None]

    def pack(self, weight, mask):
        bands = self._band(weight.shape)[mask].unique().to(torch.int32)
        values = torch.where(mask, weight, 0).expand(len(bands), *weight.shape)
        return {"values": values[self._places({"bands": bands}, weight.shape)], "bands": bands}

    def unpack(self, parts, shape):
        places = self._places(parts, shape)
        return parts["values"].new_zeros(places.shape).masked_scatter(places, parts["values"]).sum(0)

    def gather(self, dense, parts):
        places = self._places(parts, dense.shape)
        return dense.expand(places.shape)[places]

    def verify(self, parts, shape, what):
        self.check_shape(shape, what)
        bands, values = parts["bands"], parts["values"]
        require(bands.dtype == torch.int32 and bands.dim() == 1, f"{what}.bands: expected int32 numbers")
        legal = bool(((bands >= 0) & (bands < shape[1] // self.width)).all() and (bands.diff() > 0).all())
        require(legal, f"{what}.bands: expected ascending numbers of bands")
        expected = len(bands) * shape[0] * self.width
        require(values.shape == (expected,), f"{what}.values: expected {expected} values, got {list(values.shape)}")

    def stored(self, parts, shape):
        return parts["values"].numel()
'''


@pytest.fixture
def diagonal(tmp_path: Path) -> layouts.Granularity:
    file = tmp_path / "diagonal.py"
    file.write_text(DIAGONAL)
    spec = importlib.util.spec_from_file_location("throw_away_diagonal", file)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Diagonal(2)


def test_a_granularity_is_one_file(diagonal: layouts.Granularity, tmp_path: Path) -> None:
    weight, x, bias = torch.randn(9, 12), torch.randn(5, 12), torch.randn(9)
    mask = sk.make_mask(weight, diagonal, 0.5)
    assert mask.float().mean() == 0.5
    packed = sk.pack(weight, diagonal, mask)
    packed.verify()
    assert torch.equal(packed.to_dense(), weight * mask) and packed.density == 0.5
    expected = torch.relu(x @ (weight * mask).T + bias)
    torch.testing.assert_close(sk.linear(x, packed, bias, "relu"), expected)
    assert layouts.parse(diagonal.spec) == diagonal

    def model() -> nn.Sequential:
        return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    sparse = model()
    report = sk.sparsify_(sparse, sk.Sparse(diagonal, 0.5, only_if_faster=False), example_inputs=x)
    assert [row.kernel for row in report] == ["reference_diagonal"] * 2
    assert report["0"].verdict.startswith("diagonal 2, 50 %, reference_diagonal")
    assert isinstance(sparse[0], sk.SparseLinear)
    y = sparse(x)
    y.sum().backward()
    assert sparse[0].bias.grad is not None

    calibrated = model()
    sk.sparsify_(calibrated, sk.Sparse(diagonal, 0.5), calibration=[x, torch.randn(40, 12)])
    assert calibrated[0].packed.density == 0.5

    sk.save(sparse, tmp_path / "model.safetensors")
    again = model()
    assert sk.load_(again, tmp_path / "model.safetensors") == ["0", "2"]
    assert torch.equal(again(x), y)
    sk.densify_(again)
    torch.testing.assert_close(again(x), y)


def test_a_granularity_shows_in_the_kernel_table(
    diagonal: layouts.Granularity, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "reference_diagonal" in [record.name for record in sk.kernels()]
    assert cli.main(["kernels", "--json"]) == 0
    assert "reference_diagonal" in [record["name"] for record in json.loads(capsys.readouterr().out)]


def test_running_the_definition_again_replaces_it_everywhere() -> None:
    weight, x = torch.randn(8, 12), torch.randn(3, 12)
    for width in (1, 2):
        # As a notebook cell that is edited and run again: here what a band is differs.
        source = DIAGONAL.replace("// self.width", f"// {width}")
        namespace: dict[str, Any] = {"__name__": "notebook"}
        exec(source, namespace)
        packed = sk.pack(weight, namespace["Diagonal"](2), weight > 0)
        torch.testing.assert_close(sk.linear(x, packed), x @ packed.to_dense().T)


@pytest.mark.parametrize("kind", ["block", "diagonal"])
def test_a_kind_belongs_to_one_class(kind: str, diagonal: layouts.Granularity) -> None:
    known = layouts.registered()[kind]
    other = type("Other", (type(diagonal),), {"kind": kind})
    with pytest.raises(
        ValueError, match=f"^Other: expected a kind of its own, got '{kind}', which is .*{known.__name__}"
    ):
        layouts.register(other)
    assert layouts.registered()[kind] is known


# ---- a back end is one class ---------------------------------------------------------------------


class ThrowAway(Backend):
    """Takes 16-row blocks in float32 and counts what it does."""

    name: ClassVar[str] = "throw_away"

    def __init__(self) -> None:
        self.calls = 0

    def kernels(self) -> list[KernelRecord]:
        return [
            KernelRecord(
                "throw_away_16", self.name, "linear", "block", ("float32",), "any", True, rows=16, multiple=False
            )
        ]

    def refusal(self, request: Request) -> str | None:
        return None if request.granularity.label.startswith("16x") else "only blocks of 16 rows"

    def kernel_name(self, request: Request, tokens: int) -> str:
        return "throw_away_16"

    def linear(
        self,
        x: Tensor,
        granularity: layouts.Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        self.calls += 1
        assert activation == "none"
        parts = dict(zip(granularity.part_names, tensors, strict=True))
        return nn.functional.linear(x, granularity.unpack(parts, shape), bias)


def test_a_back_end_is_one_class(capsys: pytest.CaptureFixture[str]) -> None:
    backend = ThrowAway()
    register_backend(backend, first=True)
    assert sk.kernels()[0].name == "throw_away_16"
    assert cli.main(["kernels"]) == 0
    assert "throw_away_16" in capsys.readouterr().out

    model, x = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)), torch.randn(3, 32)
    config = {"0": sk.Sparse(sk.Block(16, 1), 0.5), "2": sk.Sparse(sk.Block(8, 1), 0.5)}
    report = sk.sparsify_(model, config)
    assert report["0"].kernel == "throw_away_16"
    assert report["2"].kernel != "throw_away_16" and report["2"].sparse
    model(x)
    assert backend.calls == 1
    sk.linear(x, model[0].packed)
    assert backend.calls == 2
    torch.testing.assert_close(model(x), model[2].to_dense()(torch.relu(model[0].to_dense()(x))))


def test_back_ends_are_asked_in_order_and_give_reasons() -> None:
    request = Request(sk.Block(16, 1), (32, 32), torch.float32, "cpu")
    before = select(request).name
    register_backend(ThrowAway())
    assert select(request).name == before  # registered behind the others
    register_backend(ThrowAway(), first=True)
    assert select(request).name == "throw_away"


def test_a_name_belongs_to_one_back_end() -> None:
    class Other(ThrowAway):
        name: ClassVar[str] = "cpu"

    before = backends()
    with pytest.raises(
        ValueError, match=r"Other: expected a name of its own, got 'cpu', which is .*\.CpuBackend; choose"
    ):
        register_backend(Other())
    assert backends() == before
    # A notebook cell that runs twice defines the same class anew.
    register_backend(ThrowAway())
    again = type("ThrowAway", (ThrowAway,), {"__module__": ThrowAway.__module__})()
    register_backend(again)
    assert backends() == [*before, again]
