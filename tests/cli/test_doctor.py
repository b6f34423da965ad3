"""What doctor finds, and what it says about what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsekern import _native
from sparsekern.cli import doctor
from sparsekern.cli.main import main


def facts(capsys: pytest.CaptureFixture[str]) -> doctor.Facts:
    code = main(["doctor", "--json"])
    found: doctor.Facts = json.loads(capsys.readouterr().out)
    assert code == (1 if found["problems"] else 0)
    return found


def test_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys)
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert "reference" in found["kernels"]
    assert main(["doctor"]) == (0 if _native.native else 1)
    assert torch.__version__ in capsys.readouterr().out


@pytest.mark.needs_native
def test_native_build_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys)
    assert found["native"]["built"] and found["native"]["compiler"]
    assert found["isa"]["active"] in found["isa"]["supported"]
    assert found["kernels"]["cpu"]


@pytest.mark.needs_native
def test_kernels_above_the_level_in_use_are_not_active(capsys: pytest.CaptureFixture[str]) -> None:
    before = _native.native.isa()
    _native.native.set_isa("portable")
    try:
        assert all(name.endswith("portable") for name in facts(capsys)["kernels"]["cpu"])
    finally:
        _native.native.set_isa(before)


def test_library_that_does_not_load_is_a_problem_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_native, "native", None)
    monkeypatch.setattr(_native, "failure", "undefined symbol: aoti_torch_empty")
    record = {"native": True, "torch": "2.10.0"}
    monkeypatch.setattr(doctor, "_build_record", lambda: record)
    found = facts(capsys)
    assert not found["native"]["built"]
    assert "undefined symbol" in found["native"]["reason"] and "2.10.0" in found["native"]["reason"]
    assert main(["doctor"]) == 1
    assert "pip install" in capsys.readouterr().out


def test_missing_extra_comes_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = ['rich; extra == "cli"', 'no-such-package>=2,<3; extra == "demo"', 'pytest; extra == "test"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: declared)
    extras = facts(capsys)["extras"]
    assert set(extras) == {"cli", "demo", "demo data"}
    assert extras["demo"] == {"missing": ["no-such-package>=2,<3"], "fix": 'pip install "no-such-package>=2,<3"'}


@pytest.mark.needs_native
def test_instruction_set_that_the_cpu_lacks_is_a_problem_and_no_traceback() -> None:
    # In a process of its own: the variable is read when the package is imported.
    ran = started_with("avx9000", "doctor", "--json")
    assert (ran.returncode, ran.stderr) == (1, "")
    found = json.loads(ran.stdout)
    assert found["isa"]["SPARSEKERN_ISA"] == "avx9000"
    (problem,) = found["problems"]
    assert problem.startswith("SPARSEKERN_ISA=avx9000: expected one of ")


@pytest.mark.needs_native
def test_other_verbs_refuse_such_an_instruction_set_in_one_line() -> None:
    ran = started_with("avx9000", "kernels")
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("sparsekern kernels: SPARSEKERN_ISA=avx9000: expected one of ")


@pytest.mark.needs_native
def test_the_command_line_keeps_to_the_instruction_set() -> None:
    found = json.loads(started_with("portable", "doctor", "--json").stdout)
    assert found["isa"]["active"] == "portable" and not found["problems"]


def started_with(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsekern", *arguments]
    return subprocess.run(command, env={**os.environ, "SPARSEKERN_ISA": isa}, capture_output=True, text=True)


WITHOUT_LIBRARY = "import sys; sys.modules['sparsekern._C'] = None; "


@pytest.mark.parametrize("isa", ["portable", "avx512", "typo"])
def test_without_a_library_no_instruction_set_is_silently_accepted(isa: str) -> None:
    # A process of its own: the variable is read when the package is imported.
    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_LIBRARY + code, *arguments]
        return subprocess.run(command, env={**os.environ, "SPARSEKERN_ISA": isa}, capture_output=True, text=True)

    message = f"SPARSEKERN_ISA={isa}: expected compiled kernels to choose from, but there are none (import of"
    imported = run("import sparsekern")
    assert imported.returncode == 1 and f"RuntimeError: {message}" in imported.stderr
    doctor_code = "sys.argv[0] = '-m'; from sparsekern.cli.main import main; sys.exit(main(sys.argv[1:]))"
    found = json.loads(run(doctor_code, "doctor", "--json").stdout)
    assert found["problems"][0].startswith(message) and len(found["problems"]) == 2


def test_build_record_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_native, "native", None)
    monkeypatch.setattr(doctor, "BUILD_RECORD", tmp_path / "build_info.json")
    assert "never built" in doctor.native_facts()["reason"]
