"""Disassemblers: where they are looked for, and what is said when they are missing or fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparsekern.listings import UnreadableError, tools


def planted(folder: Path, script: str) -> Path:
    folder.mkdir(parents=True)
    tool = folder / "cuobjdump"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return tool


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    (tmp_path / "site" / "triton").mkdir(parents=True)
    (tmp_path / "site" / "triton" / "__init__.py").write_text("raise AssertionError('imported')")


def test_the_path_comes_first_then_the_toolkit_then_triton(tmp_path: Path) -> None:
    assert tools.find("cuobjdump") is None
    for folder in ("site/triton/backends/nvidia/bin", "cuda/bin", "bin"):
        tool = planted(tmp_path / folder, "echo $1")
        assert tools.find("cuobjdump") == str(tool)
    assert tools.output_of("cuobjdump", "-x") == "-x\n"


@pytest.mark.parametrize("tool", tools.HOW_TO_INSTALL)
def test_a_missing_tool_is_named_with_how_to_get_it(tool: str) -> None:
    with pytest.raises(UnreadableError, match=f"^needs {tool}, which is not there: .*install"):
        tools.output_of(tool, "x")


def test_a_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    planted(tmp_path / "bin", "echo no such file >&2; exit 3")
    with pytest.raises(UnreadableError, match=r"^cuobjdump failed with code 3 and said: no such file$"):
        tools.output_of("cuobjdump", "x")
