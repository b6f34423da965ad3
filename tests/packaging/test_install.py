"""The package installs without a compiler, and its source distribution is complete."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "sparsekern"]

USE = """
import torch, sparsekern as sk
weight, x = torch.randn(32, 48), torch.randn(5, 48)
mask = sk.make_mask(weight, sk.Block(16, 1), 0.5)
y = sk.linear(x, sk.pack(weight, sk.Block(16, 1), mask))
torch.testing.assert_close(y, x @ (weight * mask).T)
print(sk.__file__)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources without anything that was built from them."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            unbuilt = shutil.ignore_patterns("*.so", "build_info.json", "__pycache__")
            shutil.copytree(ROOT / name, target / name, ignore=unbuilt)
        else:
            shutil.copy(ROOT / name, target)
    return target


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARSEKERN_")}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=env | environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_without_a_compiler_the_package_is_pure_python_and_says_so(checkout: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target", site, ".")
    installed = run(*pip, cwd=checkout, CC="/bin/false", CXX="/bin/false")
    assert installed.returncode == 0, installed.stderr

    # -S: the finder of an editable installation would add its native library to this one.
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    used = run("-S", "-c", USE, cwd=tmp_path, PYTHONPATH=path)
    assert used.returncode == 0, used.stderr
    assert used.stdout.startswith(str(site)), "another installation was tested"

    doctor = run("-S", "-m", "sparsekern", "doctor", "--json", cwd=tmp_path, PYTHONPATH=path)
    native = json.loads(doctor.stdout)["native"]
    assert not native["built"]
    assert "compiler '/bin/false'" in native["reason"]
    assert "pip install" in native["fix"]


def test_a_required_native_build_fails_in_one_line_without_a_compiler(checkout: Path) -> None:
    build = run("setup.py", "--version", cwd=checkout, CXX="/bin/false", SPARSEKERN_REQUIRE_NATIVE="1")
    assert build.returncode != 0
    assert build.stderr.startswith("sparsekern: SPARSEKERN_REQUIRE_NATIVE is set, but the C++ compiler '/bin/false'")
    assert "Traceback" not in build.stderr


TINY = """
#include <Python.h>
PyMODINIT_FUNC PyInit__C() { static PyModuleDef def = {PyModuleDef_HEAD_INIT, "_C"}; return PyModule_Create(&def); }
"""


@pytest.mark.needs_native
def test_building_in_place_renews_the_record_of_what_was_built(checkout: Path) -> None:
    shutil.rmtree(checkout / "csrc")
    (checkout / "csrc" / "core").mkdir(parents=True)
    (checkout / "csrc" / "core" / "tiny.cpp").write_text(TINY)
    record = checkout / "sparsekern" / "build_info.json"
    record.write_text('{"git": "of the last build"}')
    built = run("setup.py", "--quiet", "build_ext", "--inplace", cwd=checkout)
    assert built.returncode == 0, built.stderr
    assert json.loads(record.read_text())["native"] and "last build" not in record.read_text()


def test_source_distribution_holds_the_native_sources(checkout: Path, tmp_path: Path) -> None:
    # Also when it is made without a compiler, where no extension would mention them.
    made = run("setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=checkout, CXX="/bin/false")
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    native = {str(path.relative_to(checkout)) for path in (checkout / "csrc").rglob("*") if path.is_file()}
    assert native and native <= held
    assert {"sparsekern/py.typed", "sparsekern/_C.pyi", "LICENSE"} <= held
