"""Every Python block of the README and of docs/ runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_of(text: str) -> str:
    """The Python blocks alone, each line still at its number in the document."""
    code, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside and line == "```python"
            code.append("")
        else:
            code.append(line if inside else "")
    return "\n".join(code) + "\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_snippets_run(document: Path, tmp_path: Path) -> None:
    # In a process of its own: a snippet may register a granularity, and writes files where it runs.
    script = tmp_path / f"{document.name}.py"
    script.write_text(code_of(document.read_text()))
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_only_python_blocks_are_taken() -> None:
    assert code_of("a\n```sh\nmake\n```\n```python\nx = 1\n```\nb") == "\n\n\n\n\nx = 1\n\n\n"
