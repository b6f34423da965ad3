"""Importing is silent and light, and needs torch alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsekern

PACKAGE = Path(sparsekern.__file__).parent

SCRIPT = """
import sys, torch
before = set(sys.modules)
import sparsekern
print(*sorted({name for name in set(sys.modules) - before}))
"""
# Each costs a noticeable part of a second, or is optional.
HEAVY = {"numpy", "pandas", "rich", "safetensors", "scipy", "torch._dynamo", "torch._inductor", "transformers"}


def test_import_prints_nothing_and_loads_nothing_heavy() -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    loaded, *more = ran.stdout.splitlines()
    assert not more, "importing printed something"
    heavy = HEAVY & set(loaded.split())
    assert not heavy


def imported_at_import(tree: ast.AST) -> Iterator[str]:
    """Packages that a module imports as soon as it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
        elif not isinstance(node, ast.FunctionDef):
            yield from imported_at_import(node)


# What is written in Triton's language is imported when a GPU is asked for; tests/triton looks that it is not before.
IN_TRITON = [
    *(PACKAGE / "backends/triton" / name for name in ("ops.py", "ops_conv.py", "offline.py")),
    *(PACKAGE / "backends/triton/kernels").glob("*.py"),
]


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_the_standard_library_and_torch_alone(module: Path) -> None:
    allowed = {"torch", "triton"} if module in IN_TRITON else {"torch"}
    foreign = set(imported_at_import(ast.parse(module.read_text()))) - set(sys.stdlib_module_names) - allowed
    assert not foreign, "import an optional package inside the function that needs it"
