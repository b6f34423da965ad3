"""Importing is silent and light."""

import subprocess
import sys

SCRIPT = """
import sys, torch
# torch may have loaded numpy already; forget it, so that whoever asks for it again is seen.
for name in [n for n in sys.modules if n.split(".")[0] == "numpy"]:
    del sys.modules[name]
import sparsekern
heavy = {"numpy", "transformers", "rich", "safetensors", "scipy", "matplotlib", "pandas"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_import_prints_nothing_and_loads_no_extra() -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
