"""Builds the native library, or says why it cannot and leaves a pure-Python package.

Whatever needs no compiler stands in pyproject.toml. Environment switches: SPARSEKERN_REQUIRE_NATIVE=1
turns a missing compiler or torch into an error, SPARSEKERN_REQUIRE_CUDA=1 a missing nvcc, SPARSEKERN_CUDA=0
leaves the CUDA library out, MAX_JOBS limits parallel compilation, DEBUG=1 builds for a debugger.
(SPARSEKERN_SANITIZE is for `make sanitize`; see CONTRIBUTING.md.)
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Command, Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    # The kernels neither read errno nor trap: without these two, gcc keeps scalar code for both.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    # The oldest torch whose stable ABI the library uses: it then runs on that version and later ones.
    f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000",
]
# No -m flag may be added: the sources open one target region an instruction set, and code outside
# them must run on every CPU.


class NoNativeBuildError(Exception):
    """The native library cannot be built here: why, and the command that changes it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}; {fix}")
        self.reason, self.fix = reason, fix


def borrow_torch() -> ModuleType:
    """Import the torch of the environment that is installed into, also under build isolation.

    torch is no build requirement on purpose: pip would download a second one, of another version.
    """
    if importlib.util.find_spec("torch") is None:
        sys.path += [p for p in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) if p not in sys.path]
        importlib.invalidate_caches()
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise NoNativeBuildError(
            f"torch could not be imported while building ({error})",
            "install torch, then run: pip install --force-reinstall --no-deps . "
            "(with a front end other than pip, such as uv, add --no-build-isolation)",
        ) from error
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise NoNativeBuildError(f"torch {torch.__version__} is older than {wanted}", f'pip install "torch>={wanted}"')
    return torch


def check_compiler() -> str:
    """Compile a small program as the library would be; return the compiler's name and version."""
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <Python.h>\n#include <vector>\nint main() { return std::vector<int>{0}[0]; }\n")
        include = sysconfig.get_path("include")
        try:
            subprocess.run(
                [*compiler.split(), "-std=c++17", f"-I{include}", "-c", source.name],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            )
            version = subprocess.run([*compiler.split(), "--version"], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[0]
            raise NoNativeBuildError(
                f"the C++ compiler {compiler!r} cannot compile a program with <Python.h>: {said}",
                "install a C++17 compiler (GCC 11 or newer) and Python's headers (Debian: apt-get install g++ "
                "python3-dev), or name one with CXX, then run: pip install --force-reinstall --no-deps .",
            ) from error
    return version.stdout.splitlines()[0]


def compile_flags() -> tuple[list[str], list[str]]:
    """Flags for the compiler and the linker."""
    if os.environ.get("DEBUG", "0") not in ("", "0"):
        return [*FLAGS, "-O0", "-g"], []
    if sanitizers := os.environ.get("SPARSEKERN_SANITIZE"):
        sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        # All checks written out at each load of the unrolled kernels would take gcc minutes: addresses are
        # checked by calls, and what else a pointer can be wrong in by tests/native/test_emulated_kernels.py.
        brief = ["--param", "asan-instrumentation-with-call-threshold=0"]
        brief += ["-fno-sanitize=alignment,null,object-size,pointer-overflow"]
        return [*FLAGS, "-O1", "-g", "-fno-omit-frame-pointer", *sanitize, *brief], sanitize
    return FLAGS, []


def include_flags(torch: ModuleType) -> list[str]:
    """Where foreign headers are, as system headers: their warnings are not ours."""
    folders = [str(Path(torch.__file__).parent / "include")]
    if importlib.util.find_spec("pybind11"):
        folders.insert(0, importlib.import_module("pybind11").get_include())
    # else: torch carries a copy of pybind11 among its own headers.
    return [f"-isystem{folder}" for folder in folders]


# ---- the CUDA library -----------------------------------------------------------------------------

# Machine code for these, of which that of sm_80 serves 86 and 89 too, and PTX of the first for all others.
CUDA_ARCHS = ("80", "90", "100", "120")
OLDEST_CUDA = (12, 5)  # mma.sp::ordered_metadata


def find_nvcc() -> tuple[Path, str]:
    """The CUDA compiler, new enough for the kernels, and the release of CUDA that it is of."""
    if os.environ.get("SPARSEKERN_CUDA", "1") in ("", "0"):
        raise NoNativeBuildError("SPARSEKERN_CUDA=0 leaves the CUDA kernels out", "unset it and install again")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = shutil.which("nvcc", path=os.pathsep.join(f"{home}/bin" for home in homes if home)) or shutil.which("nvcc")
    install = "install a CUDA toolkit, 12.5 or newer, or name its folder with CUDA_HOME, and install again"
    if found is None:
        raise NoNativeBuildError("nvcc was not found", install)
    told = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", told)
    if release is None or (int(release[1]), int(release[2])) < OLDEST_CUDA:
        raise NoNativeBuildError(f"{found} is of CUDA {release[0] if release else 'unknown'}, older than 12.5", install)
    return Path(found).resolve(), f"{release[1]}.{release[2]}"


def cuda_archs(nvcc: Path) -> list[str]:
    """The architectures of ``CUDA_ARCHS`` that this nvcc knows."""
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    archs = [arch for arch in CUDA_ARCHS if f"sm_{arch}" in known]
    if not archs:
        raise NoNativeBuildError(f"{nvcc} compiles for none of sm_{', sm_'.join(CUDA_ARCHS)}", "install another one")
    return archs


def build_cuda(torch: ModuleType, target: Path) -> dict[str, Any]:
    """Compile what changed and link the library ``target``; return the record of it for doctor.

    Not an Extension: torch builds those with CUDA only if it has been built with CUDA itself.
    """
    nvcc, release = find_nvcc()
    archs = cuda_archs(nvcc)
    objects = ROOT / "build" / f"cuda-{release}"
    objects.mkdir(parents=True, exist_ok=True)
    bindings = [ROOT / "csrc/bindings/ops_cuda.cpp", ROOT / "csrc/bindings/cuda_arguments.cpp"]
    sources = [*sorted((ROOT / "csrc/cuda").rglob("*.cu")), ROOT / "csrc/cuda/kernel.cpp", *bindings]
    headers = [p for kind in ("*.h", "*.inc") for p in (ROOT / "csrc").rglob(kind)]
    newest = max(path.stat().st_mtime for path in [*headers, ROOT / "setup.py"])
    host = ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    code.append(f"-gencode=arch=compute_{archs[0]},code=compute_{archs[0]}")
    includes = [flag.replace("-isystem", "-isystem=") for flag in include_flags(torch)]

    def compile_one(source: Path) -> Path:
        made = objects / f"{source.name}.o"
        if made.exists() and made.stat().st_mtime > max(newest, source.stat().st_mtime):
            return made
        flags = code if source.suffix == ".cu" else [*includes, FLAGS[-1]]
        unfinished = made.with_suffix(".unfinished")
        run_compiler([nvcc, "-std=c++17", "-O3", *host, *flags, f"-I{ROOT / 'csrc'}", "-c", source, "-o", unfinished])
        return unfinished.replace(made)

    with ThreadPoolExecutor(max(1, int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))) as pool:
        made = list(pool.map(compile_one, sources))
    target.parent.mkdir(parents=True, exist_ok=True)
    libraries = f"-L{Path(torch.__file__).parent / 'lib'}"
    run_compiler([nvcc, "-shared", "-nodlink", "-cudart", "static", *made, libraries, "-ltorch_cpu", "-o", target])
    return {"built": True, "compiler": f"nvcc, CUDA {release}", "archs": [f"sm_{arch}" for arch in archs]}


def run_compiler(command: list[Any]) -> None:
    """Run it; what it says is the reason if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"
        print(said, file=sys.stderr)
        first = next((line for line in said.splitlines() if "error" in line), said[-200:])
        raise NoNativeBuildError(f"nvcc failed: {first}", "python setup.py build_ext --inplace shows all that it says")


def try_build_cuda(torch: ModuleType, folder: Path) -> dict[str, Any]:
    """Build the CUDA library beside the modules below ``folder``, or say why not; return the record of it for doctor.

    Whatever goes wrong with it, the CPU's library is there.
    """
    target = folder / "sparsekern" / "_C_cuda.so"
    try:
        return build_cuda(torch, target)
    except NoNativeBuildError as error:
        why = error
    except (OSError, ValueError) as error:
        why = NoNativeBuildError(f"{type(error).__name__}: {error}", "python setup.py build_ext --inplace tries again")
    if os.environ.get("SPARSEKERN_REQUIRE_CUDA", "0") not in ("", "0"):
        raise SystemExit(f"sparsekern: SPARSEKERN_REQUIRE_CUDA is set, but {why}")
    target.unlink(missing_ok=True)
    return {"built": False, "reason": why.reason, "fix": why.fix}


# ---- the CPU library --------------------------------------------------------------------------------


def native_extension(torch: ModuleType) -> Extension:
    """The one extension: CPU kernels, their torch operators and the pybind11 control plane."""
    sources = [
        str(p.relative_to(ROOT))
        for part in ("core", "cpu", "bindings")
        for p in (ROOT / "csrc" / part).rglob("*.cpp")
        if "cuda" not in p.name
    ]
    headers = [str(p.relative_to(ROOT)) for kind in ("*.h", "*.inc") for p in (ROOT / "csrc").rglob(kind)]
    if not sources:
        raise NoNativeBuildError("csrc/ holds no sources", "build from a complete checkout or source distribution")
    compile_args, link_args = compile_flags()
    return Extension(
        "sparsekern._C",
        sources=sorted(sources),
        depends=sorted(headers),
        include_dirs=[str(ROOT / "csrc")],
        language="c++",
        extra_compile_args=[*compile_args, *include_flags(torch)],
        extra_link_args=link_args,
        library_dirs=[str(Path(torch.__file__).parent / "lib")],
        libraries=["torch_cpu"],
    )


def build_native_command(torch: ModuleType) -> type[Command]:
    """Torch's build_ext (ninja, in parallel), with a folder for objects that outlives one pip run."""
    base = importlib.import_module("torch.utils.cpp_extension").BuildExtension

    class BuildNative(base):  # type: ignore[misc, valid-type]
        def finalize_options(self) -> None:
            super().finalize_options()
            kind = "sanitize" if os.environ.get("SPARSEKERN_SANITIZE") else "native"
            self.build_temp = str(ROOT / "build" / f"{kind}-{sys.implementation.cache_tag}")

        def run(self) -> None:
            super().run()
            # Sanitizers are for the CPU's kernels: those of CUDA have the emulator.
            if not os.environ.get("SPARSEKERN_SANITIZE"):
                folder = ROOT if self.inplace else Path(self.build_lib)
                RECORD["cuda"] = try_build_cuda(torch, folder)
                write_record(folder)

    return BuildNative


def git_revision() -> str | None:
    """The commit that is built, where this is a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def plan_build() -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for setup() and the record that ``python -m sparsekern doctor`` shows."""
    try:
        torch = borrow_torch()
        compiler = check_compiler()
        extension = native_extension(torch)
    except NoNativeBuildError as why:
        if os.environ.get("SPARSEKERN_REQUIRE_NATIVE", "0") not in ("", "0"):
            raise SystemExit(f"sparsekern: SPARSEKERN_REQUIRE_NATIVE is set, but {why}") from None
        print(f"sparsekern: building the pure-Python package without kernels: {why}", file=sys.stderr)
        return {}, {"native": False, "reason": why.reason, "fix": why.fix, "git": git_revision()}
    record = {
        "native": True,
        "compiler": compiler,
        "flags": " ".join(compile_flags()[0]),
        "torch": torch.__version__,
        "git": git_revision(),
    }
    return {"ext_modules": [extension], "cmdclass": {"build_ext": build_native_command(torch)}}, record


ARGUMENTS, RECORD = plan_build()


def write_record(folder: Path) -> None:
    """Beside the modules below ``folder``; doctor shows it, and benchmarks take the commit from it."""
    (folder / "sparsekern" / "build_info.json").write_text(json.dumps(RECORD, indent=2) + "\n")


class BuildPython(build_py):
    """Ships the build record beside the modules."""

    def run(self) -> None:
        super().run()
        write_record(ROOT if self.editable_mode else Path(self.build_lib))


ARGUMENTS.setdefault("cmdclass", {})["build_py"] = BuildPython
setup(**ARGUMENTS)
