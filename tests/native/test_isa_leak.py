"""No instruction of a level above the base target outside the functions of that level.

A single AVX-512 instruction in code that runs before dispatch, such as a constructor of a constant or
an inline function that the linker shares, ends the process on CPUs without it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsekern import _native

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
COMPILER = os.environ.get("CXX", "c++").split()
ISA_SOURCES = [
    "amx_bf16.cpp", "avx512_bf16.cpp", "avx512.cpp", "avx2.cpp", "portable.cpp",
    "conv_avx512.cpp", "conv_avx2.cpp", "conv_portable.cpp",
]  # fmt: skip
TILES = re.compile(r"%tmm|tilecfg|tilerelease")
ABOVE_AVX2 = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b")
# VEX-encoded instructions all begin with v; these are the others that do.
NOT_VECTOR = ("verr", "verw", "vmcall")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (Debian: binutils, g++)")


needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 machine code")


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def library() -> Path:
    if _native.native is None:
        pytest.skip(f"no native kernels: {_native.failure}")
    path = Path(_native.native.__file__)
    symbols = output_of("nm", path)
    if "outputs_r16" not in symbols:
        pytest.skip(f"{path.name} is stripped of the names that this test goes by")
    if "asan" in symbols:
        pytest.skip("sanitizers add constructors and wrappers of their own")
    return path


def level_of(function: str) -> str:
    return next((level for level in ("amx", "avx512", "avx2") if level in function), "base")


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Function and text of each instruction."""
    function = "?"
    for line in output_of("objdump", "-d", "-C", "--no-show-raw-insn", path).splitlines():
        if line.endswith(">:"):
            function = line.split(" <", 1)[1][:-2]
        elif "\t" in line:
            yield function, line.split("\t", 1)[1]


def too_high(function: str, text: str) -> bool:
    level = level_of(function)
    if level == "amx":
        return False
    if TILES.search(text):
        return True
    if level == "avx512":
        return False
    if ABOVE_AVX2.search(text):
        return True
    mnemonic = text.split(maxsplit=1)[0] if text.split() else ""
    return level == "base" and ("%ymm" in text or (mnemonic.startswith("v") and not mnemonic.startswith(NOT_VECTOR)))


@needs_x86
@needs("nm", "objdump")
def test_no_instruction_outside_its_functions(library: Path) -> None:
    leaks, seen = [], set()
    for function, text in instructions(library):
        if too_high(function, text):
            leaks.append(f"{function}: {text}")
        if re.search(r"Outputs|Tokens|Vector|outputs_r|tokens_r|vector_r", function):
            seen |= {name for name in ("%zmm", "%ymm") if name in text}
    assert not leaks, f"{len(leaks)} instructions, the first ones: {leaks[:5]}"
    assert seen == {"%zmm", "%ymm"}, "the disassembly shows no kernel at all"


@pytest.mark.parametrize(
    ("function", "text", "leaks"),
    [
        ("std::vector<int>::push_back(int)", "vmovups (%rax),%xmm0", True),
        ("std::vector<int>::push_back(int)", "movups (%rax),%xmm0", False),
        ("sparsekern::avx2::f()", "vmovups (%rax),%ymm3", False),
        ("sparsekern::avx2::f()", "vmovups (%rax),%ymm16", True),
        ("sparsekern::avx2::f()", "vmovups (%rax),%xmm1{%k1}", True),
        ("sparsekern::avx512::f()", "vmovups (%rax),%zmm31{%k1}", False),
        ("sparsekern::avx512_bf16::f()", "tilezero %tmm0", True),
        ("sparsekern::avx512_bf16::f()", "ldtilecfg (%rax)", True),
        ("sparsekern::amx_bf16::f()", "tilezero %tmm0", False),
    ],
)
def test_the_rule_itself(function: str, text: str, leaks: bool) -> None:
    assert too_high(function, text) is leaks


@needs_x86
@needs("nm")
def test_no_constructor_of_a_kernel_file(library: Path) -> None:
    constructors = [line for line in output_of("nm", "-C", library).splitlines() if "_GLOBAL__sub_I" in line]
    # Named after the file, or after its first symbol, which carries the level.
    assert not [c for c in constructors if re.search(r"amx|avx|portable|outputs_r|tokens_r|vector_r|conv_r", c)]


@needs_x86
@needs("nm", "readelf", COMPILER[0])
@pytest.mark.parametrize("source", ISA_SOURCES)
def test_a_kernel_file_defines_its_kernels_and_nothing_else(source: str, tmp_path: Path) -> None:
    compiled = tmp_path / "kernels.o"
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Icsrc", "-fno-asynchronous-unwind-tables"]
    output_of(*COMPILER, *flags, "-c", f"csrc/cpu/{source}", "-o", compiled)
    symbols = [line.split()[-2:] for line in output_of("nm", compiled).splitlines()]
    level, is_conv = source.removesuffix(".cpp").removeprefix("conv_"), source.startswith("conv_")
    tables = [(CSRC / "cpu" / name).read_text() for name in ("kernels.inc", "grad_kernels.inc", "conv_kernels.inc")]
    table = re.findall(r"^SPARSEKERN_(?:GRAD_|CONV_)?KERNEL\((\w+),", "".join(tables), re.MULTILINE)
    unwidened = re.findall(r"^SPARSEKERN_UNWIDENED\((\w+),", (CSRC / "cpu/unwidened.inc").read_text(), re.MULTILINE)
    assert sorted(name for kind, name in symbols if kind in "TWVuDBCGS") == sorted(
        f"sparsekern_{name}{suffix}"
        for names, suffix in ((table, ""), (unwidened, "_unwidened"))
        for name in names
        if name.startswith("conv_") == is_conv and name.endswith(f"_{level}")
    )
    variables = [name for kind, name in symbols if kind in "dbDBCGS"]
    assert not variables, "objects at namespace scope"
    needed = {name for kind, name in symbols if kind == "U"}
    assert needed <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    sections = output_of("readelf", "-SW", compiled)
    assert not re.search(r"\.(init_array|ctors|tbss|tdata)", sections)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def reached_from(path: Path) -> set[Path]:
    """The file and those of ours that it includes, directly or not."""
    reached = {path}
    for name in includes(path):
        if (CSRC / name).exists() and CSRC / name not in reached:
            reached |= reached_from(CSRC / name)
    return reached


def test_kernel_files_are_free_of_the_standard_library() -> None:
    """Its inline functions would be compiled for the level, and the linker may keep those for everybody."""
    allowed = {"immintrin.h", "stddef.h", "stdint.h"}
    reached = set().union(*(reached_from(CSRC / "cpu" / name) for name in ISA_SOURCES))
    assert CSRC / "cpu/outputs.inl.h" in reached
    for path in reached:
        foreign = [name for name in includes(path) if not (CSRC / name).exists() and name not in allowed]
        assert not foreign, f"{path.relative_to(ROOT)} includes {foreign}"
