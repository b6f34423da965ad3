"""What nvcc makes of the kernels for each architecture: no GPU is needed to see spills, registers and main loops.

``instruction_mix.json`` holds how many instructions the main loops take for one of the tensor cores. Renew it, and say
why in the commit: ``python tests/cuda/test_machine_code.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsekern.listings import Instruction, nvidia, tools
from sparsekern.listings.code import count

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
RECORDED = Path(__file__).with_name("instruction_mix.json")
WITHOUT_TENSOR_CORES = {"block_columns", "add_partials"}

# Registers of a thread with which as many thread blocks fit an SM as the kernel means to have there.
REGISTERS = {
    "block_linear": 128,
    "block_conv": 128,
    "nm_linear": 128,
    "block_decode": 64,
    "nm_decode": 80,
    "grad_values": 255,
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Function:
    """A kernel of a cubin."""

    name: str
    instructions: list[Instruction]
    registers: int
    spilled: int

    @property
    def family(self) -> str:
        return self.name.partition("<")[0]

    @property
    def loop(self) -> list[Instruction]:
        return nvidia.main_loop(self.instructions)

    @property
    def mix(self) -> dict[str, int]:
        return count((nvidia.sass_kind(one.text) for one in self.loop), nvidia.SASS_KINDS)

    @property
    def for_one_product(self) -> float:
        """Instructions of the main loop for each of its tensor cores' own."""
        return len(self.loop) / sum(number for kind, number in self.mix.items() if kind.startswith("HMMA"))


def compile_for(arch: str, folder: Path) -> list[Function]:
    functions = []
    for source in SOURCES:
        cubin = folder / f"{source.stem}.{arch}.cubin"
        command = ["nvcc", "-std=c++17", "-O3", f"-arch={arch}", f"-I{ROOT / 'csrc'}", "-cubin", source, "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        used = nvidia.resources(cubin)
        for name, instructions in nvidia.sass(cubin).items():
            told = used[name]
            short = nvidia.short(nvidia.demangled(name))
            functions.append(Function(short, instructions, told["registers"], told["stack bytes"]))
    return functions


def compile_all(folder: Path) -> dict[str, list[Function]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(ARCHS, pool.map(lambda arch: compile_for(arch, folder), ARCHS), strict=True))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Function]]:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the PATH: install a CUDA toolkit, 12.5 or newer")
    if tools.find("cuobjdump") is None or tools.find("nvdisasm") is None:
        pytest.skip("no cuobjdump or nvdisasm: pip install triton brings them")
    return compile_all(tmp_path_factory.mktemp("cubins"))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel(compiled: dict[str, list[Function]], arch: str) -> None:
    functions = compiled[arch]
    assert {function.family for function in functions} == {*REGISTERS, *WITHOUT_TENSOR_CORES}
    for function in functions:
        assert function.spilled == 0, f"{function.name} spills {function.spilled} bytes"
        local = [one.text for one in function.instructions if nvidia.sass_kind(one.text) in ("LDL", "STL")]
        assert not local, f"{function.name} uses local memory: {local}"
        assert function.registers <= REGISTERS.get(function.family, 64), function.name


@pytest.mark.parametrize("arch", ARCHS)
def test_main_loops(compiled: dict[str, list[Function]], arch: str) -> None:
    for function in compiled[arch]:
        if function.family in WITHOUT_TENSOR_CORES:
            continue
        wanted = "HMMA.SP" if function.family.startswith("nm") else "HMMA"
        assert function.mix.get(wanted, 0) > 0, f"{function.name}: no {wanted} in its main loop, {function.mix}"
        assert function.mix.get("LDSM", 0) > 0 and function.mix.get("LDGSTS", 0) > 0, (function.name, function.mix)
        copies = [one.text for one in function.loop if nvidia.sass_kind(one.text) == "LDGSTS"]
        assert all(".128" in text and "BYPASS" in text for text in copies), copies
        # Nothing but indices is loaded to registers from global memory.
        loads = [one.text for one in function.loop if nvidia.sass_kind(one.text) == "LDG"]
        assert all(re.search(r"LDG\.E(\.U16)?\.CONSTANT", text) for text in loads), loads


@pytest.mark.parametrize("arch", ARCHS)
def test_outputs_are_stored_in_full_width(compiled: dict[str, list[Function]], arch: str) -> None:
    for function in compiled[arch]:
        if function.family in ("block_linear", "block_conv", "nm_linear", "grad_values", "add_partials"):
            stores = [one.text for one in function.instructions if nvidia.sass_kind(one.text) == "STG"]
            assert any("STG.E.128" in text for text in stores), function.name


@pytest.mark.parametrize("arch", ARCHS)
def test_main_loops_take_no_more_than_is_recorded(compiled: dict[str, list[Function]], arch: str) -> None:
    known = json.loads(RECORDED.read_text())
    if known["nvcc"] != release():
        pytest.skip(f"recorded with CUDA {known['nvcc']}, this is {release()}")
    recorded = known["archs"][arch]
    found = told(compiled[arch])
    assert found.keys() == recorded.keys()
    worse = {name: (found[name], least) for name, least in recorded.items() if found[name] > least * 1.02}
    assert not worse, f"instructions for one of tensor cores, found and recorded: {worse}"


def release() -> str:
    """Of CUDA, such as ``13.0``."""
    printed = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"release ([\d.]+)", printed)[0]


def told(functions: list[Function]) -> dict[str, float]:
    used = [function for function in functions if function.family not in WITHOUT_TENSOR_CORES]
    return {function.name: round(function.for_one_product, 2) for function in sorted(used, key=lambda one: one.name)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mixes = {arch: told(functions) for arch, functions in compile_all(Path(folder)).items()}
    RECORDED.write_text(json.dumps({"nvcc": release(), "archs": mixes}, indent=1) + "\n")
