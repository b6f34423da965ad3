"""What bench/gpu.py does before it needs a GPU, and with what it measured."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sparsekern as sk

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_script"] = module
    spec.loader.exec_module(module)
    return module


def test_the_goals_are_measured_first(script: ModuleType) -> None:
    quick, all_cases = list(script.cases(True)), list(script.cases(False))
    for cases in (quick, all_cases):
        assert (cases[0].tokens, cases[0].granularity) == (8192, sk.NM(2, 4))
        assert cases[1].granularity == sk.Block(128, 128)
    assert (quick[0].inputs, quick[0].outputs) == (8192, 8192)
    assert len(set(quick)) == len(quick) and set(quick) < set(all_cases)
    for block in script.BLOCKS:
        assert {case.density for case in quick if case.granularity == block} == {0.5, 0.25, 0.1}


def test_convolutions_are_among_them(script: ModuleType) -> None:
    quick, all_cases = list(script.conv_cases(True)), list(script.conv_cases(False))
    assert len(set(quick)) == len(quick) == 12 and set(quick) < set(all_cases)
    case = script.ConvCase(128, 128, 28, 32, sk.Block(64, 64), 0.25, torch.bfloat16)
    assert case in quick
    told = {"case": case.record() | {"kernel": "block_conv_h64"}, "speedup": 1.5, "times": {"kernel": {"median": 2e-5}}}
    assert script.table([told]).splitlines()[-1] == (
        "| 128->128 (3x3) | 25088 | 64x64 | 0.25 | block_conv_h64 | 20.0 | 1.50 | - |"
    )
    assert script.line(told).startswith("25088 x 128->128 (3x3)")


def test_ways_of_convolutions_on_a_cpu(script: ModuleType) -> None:
    """Those that need no GPU make the same."""
    case = script.ConvCase(16, 32, 5, 2, sk.Block(16, 16), 0.5, torch.float32)
    weight, x = torch.randn(32, 16, 3, 3), torch.randn(2, 16, 5, 5)
    packed = sk.pack(weight, case.granularity)
    ways = script.conv_ways(case, packed, x, weight)
    torch.testing.assert_close(ways["cudnn"].make()(), ways["sparsekern"].make()())


def record(script: ModuleType, **times: dict[str, object]) -> dict[str, object]:
    case = script.Case(4096, 8192, 16, sk.Block(64, 64), 0.25, torch.bfloat16)
    return {"case": case.record() | {"kernel": "block_decode_h32"}, "times": times, "speedup": 2.5}


def test_what_is_printed(script: ModuleType) -> None:
    whole = record(script, cublas={"median": 5e-5}, kernel={"median": 2e-5}, **{"torch bsr": {"median": 6e-5}})
    assert script.table([whole]).splitlines()[-1] == (
        "| 4096->8192 | 16 | 64x64 | 0.25 | block_decode_h32 | 20.0 | 2.50 | 3.00 |"
    )
    assert "2.50x  cublas 50.0 us, kernel 20.0 us, torch bsr 60.0 us" in script.line(whole)
    failed = record(script, cublas={"median": 5e-5}, kernel={"failed": "why"}) | {"speedup": None}
    assert script.table([failed]).splitlines()[-1].endswith("| failed | - | - |")
    assert "kernel failed" in script.line(failed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said where there is no GPU; here is one")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path / "gpu.jsonl"], capture_output=True, text=True)
    assert ran.returncode == 2 and "PyTorch finds no CUDA device" in ran.stderr
    assert not (tmp_path / "gpu.jsonl").exists()
