"""The AMX, AVX-512, AVX2 and portable kernels, unforked, where no instruction of them exists: through SIMDe.

``SPARSEKERN_SANITIZE`` (see ``make sanitize``) builds the same program with sanitizers, which then see
each lane of each load and store, masked ones too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparsekern._native import native

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++").split()
# Kernels without optimisation: emulation makes of each instruction so much code that gcc would take minutes.
KERNELS = {
    "csrc/cpu/amx_bf16.cpp": "-O0",
    "csrc/cpu/avx512_bf16.cpp": "-O0",
    "csrc/cpu/avx512.cpp": "-O0",
    "csrc/cpu/avx2.cpp": "-O0",
    "csrc/cpu/portable.cpp": "-O1",
    "csrc/cpu/conv_avx512.cpp": "-O0",
    "csrc/cpu/conv_avx2.cpp": "-O0",
    "csrc/cpu/conv_portable.cpp": "-O0",
}
DRIVER = {
    "csrc/core/cpu_info.cpp": "-O1",
    "csrc/cpu/bfloat16.cpp": "-O1",
    "csrc/cpu/dispatch.cpp": "-O1",
    "csrc/cpu/unwidened.cpp": "-O1",
    "csrc/cpu/shares.cpp": "-O1",
    "csrc/cpu/threads.cpp": "-O1",
    "csrc/cpu/grad_dispatch.cpp": "-O1",
    "csrc/cpu/conv_dispatch.cpp": "-O1",
    "tests/native/emulated_kernels.cpp": "-O2",
    "tests/native/emulated_grads.cpp": "-O2",
    "tests/native/emulated_convs.cpp": "-O2",
}
SANITIZE = os.environ.get("SPARSEKERN_SANITIZE")
# What the thread sanitizer looks for does not depend on the lanes, and emulation would take it many minutes.
EMULATED = SANITIZE != "thread"


def has_simde() -> bool:
    if shutil.which(COMPILER[0]) is None:
        return False
    probe = "#include <simde/x86/avx512.h>\n"
    return (
        subprocess.run([*COMPILER, "-x", "c++", "-E", "-"], input=probe, text=True, capture_output=True).returncode == 0
    )


pytestmark = pytest.mark.skipif(
    not has_simde(), reason="emulation needs a C++ compiler and SIMDe's headers (Debian: libsimde-dev)"
)


def run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulated")
    flags = ["-std=c++17", "-g1", "-pthread", "-ffp-contract=off", "-Icsrc", "-Itests/native"]
    # Regions without target: every instruction comes from the emulation.
    emulated = ["-isystem", str(HERE / "emulated"), "-DSPARSEKERN_REGION_BEGIN(features)=", "-DSPARSEKERN_REGION_END="]
    sanitize = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if SANITIZE else []

    def build(source: str, level: str) -> Path:
        target = folder / (Path(source).stem + ".o")
        extra = emulated if source in KERNELS and EMULATED else []
        run([*COMPILER, *flags, level, *extra, *sanitize, "-c", source, "-o", target])
        return target

    sources = {**KERNELS, **DRIVER}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(build, sources, sources.values()))
    run([*COMPILER, "-pthread", *sanitize, *objects, "-o", folder / "emulated_kernels"])
    return folder / "emulated_kernels"


@pytest.mark.parametrize("isa", ["amx_bf16", "avx512_bf16", "avx512", "avx2", "portable"])
def test_kernels_against_float64(program: Path, isa: str) -> None:
    if not EMULATED and (native is None or isa not in native.isa_supported()):
        pytest.skip(f"this CPU has no {isa}, which the thread sanitizer is not emulated for")
    run([program, isa])
