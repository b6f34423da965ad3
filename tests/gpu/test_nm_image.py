"""The packed image of 2:4, as it lies in memory, is what ``mma.sp`` reads.

``nm_image.cu`` multiplies with it: on a GPU by tensor cores; on any CPU the same source is compiled with
``emulated/``, where the instruction is its definition in the PTX ISA. Runs without the compiled library,
and without tests/conftest.py.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparsekern as sk

ROOT = Path(__file__).parents[2]
KERNEL = "tests/gpu/nm_image.cu"
NVCC = shutil.which("nvcc")
COMPILER = os.environ.get("CXX", "c++").split()
ENTRIES = {torch.bfloat16: "linear_bfloat16", torch.float16: "linear_float16"}

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH: install a CUDA toolkit, 12.5 or newer")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no C++ compiler: {COMPILER[0]}")

all_cases = pytest.mark.parametrize(
    ("outputs", "inputs", "tokens"),
    [
        (16, 32, 8),  # one tile
        (16, 64, 8),  # both selectors
        (48, 160, 24),  # whole tiles, the last one alone
        (17, 33, 9),
        (3, 5, 1),
        (31, 126, 7),
        (100, 258, 21),
        (64, 515, 40),
    ],
)
both_dtypes = pytest.mark.parametrize("dtype", ENTRIES, ids=lambda dtype: str(dtype).removeprefix("torch."))


class Product(ctypes.Structure):
    """``Product`` of nm_image.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "positions", "x", "y")),
        *((name, ctypes.c_int) for name in ("outputs", "inputs", "tokens")),
    )


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def multiply(library: ctypes.CDLL, packed: sk.PackedWeight, x: Tensor) -> tuple[str, Tensor]:
    """The name of CUDA's error, or cudaSuccess, and ``x @ W.T`` in float32, on the device of ``x``.

    Behind x lie numbers that would spoil the result, and behind y some that must stay.
    """
    (tokens, inputs), outputs = x.shape, packed.shape[0]
    beyond = torch.full((4096,), float("nan"), dtype=x.dtype, device=x.device)
    x = torch.cat((x.flatten(), beyond))
    y = torch.cat((torch.zeros(tokens * outputs, device=x.device), beyond.float()))
    values, positions = (part.to(x.device) for part in (packed.parts["values"], packed.parts["positions"]))
    assert values.is_contiguous() and positions.is_contiguous()
    addresses = (tensor.data_ptr() for tensor in (values, positions, x, y))
    product = Product(*addresses, outputs, inputs, tokens)
    entry = getattr(library, ENTRIES[x.dtype])
    entry.restype = ctypes.c_char_p
    if x.is_cuda:
        torch.cuda.synchronize()  # the kernel is launched outside of its streams
    error = entry(ctypes.byref(product)).decode()
    assert y[tokens * outputs :].isnan().all()
    return error, y[: tokens * outputs].view(tokens, outputs)


def compare(library: ctypes.CDLL, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    """Small integers, so that any order of sums is exact: a single weight in a wrong place shows.

    Some are zero, so that groups of fewer than two are among them.
    """
    torch.manual_seed(0)
    outputs, inputs, tokens = shape
    weight = torch.randint(-9, 10, (outputs, inputs)).to(dtype)
    packed = sk.pack(weight * sk.make_mask(weight, sk.NM(2, 4)), sk.NM(2, 4))
    x = torch.randint(-9, 10, (tokens, inputs)).to(dtype)
    error, y = multiply(library, packed, x.to(device))
    if error == "cudaErrorUnsupportedPtxVersion":
        pytest.skip("the driver is older than nvcc and refuses its PTX")
    assert error == "cudaSuccess"
    assert torch.equal(y.cpu().double(), x.double() @ packed.to_dense().double().T)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("emulated") / "nm_image.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-shared", "-fPIC"]
    run(*COMPILER, *flags, "-Itests/gpu/emulated", "-x", "c++", KERNEL, "-o", library)
    return ctypes.CDLL(str(library))


@needs_compiler
@all_cases
@both_dtypes
def test_the_image_by_the_definition_of_mma_sp(
    emulated: ctypes.CDLL, outputs: int, inputs: int, tokens: int, dtype: torch.dtype
) -> None:
    compare(emulated, (outputs, inputs, tokens), dtype, "cpu")


def compile_for(virtual: str, real: str, folder: Path) -> ctypes.CDLL:
    """The kernel as a library, with what nvcc made on the way left in the folder."""
    target = ["-gencode", f"arch={virtual},code={real}", "--keep", "--keep-dir", folder]
    flags = ["-std=c++17", "-O2", "-Icsrc", "-shared", "-Xcompiler", "-fPIC"]
    run(NVCC, *flags, *target, KERNEL, "-o", folder / "nm_image.so")
    return ctypes.CDLL(str(folder / "nm_image.so"))


@pytest.fixture(scope="module", params=["machine code", "ptx of sm_80"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """For the GPU of this machine, and as the PTX that its driver translates."""
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        pytest.skip(f"mma.sp exists from sm_80 on, this GPU is sm_{major}{minor}")
    folder = tmp_path_factory.mktemp("compiled")
    if request.param == "machine code":
        return compile_for(f"compute_{major}{minor}", f"sm_{major}{minor}", folder)
    return compile_for("compute_80", "compute_80", folder)


@needs_nvcc
@needs_gpu
@all_cases
@both_dtypes
def test_the_image_by_tensor_cores(
    compiled: ctypes.CDLL, outputs: int, inputs: int, tokens: int, dtype: torch.dtype
) -> None:
    compare(compiled, (outputs, inputs, tokens), dtype, "cuda")


def disassembler() -> str | None:
    """nvdisasm, of a CUDA toolkit or of Triton."""
    triton = find_spec("triton")
    folders = [Path(place) / "backends/nvidia/bin" for place in (triton.submodule_search_locations if triton else [])]
    return shutil.which("nvdisasm") or next(filter(None, (shutil.which("nvdisasm", path=f) for f in folders)), None)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_machine_code(arch: str, tmp_path: Path) -> None:
    library = compile_for(arch.replace("sm", "compute"), arch, tmp_path)
    assert all(hasattr(library, entry) for entry in ENTRIES.values())
    tool = disassembler()
    if tool is None:
        pytest.skip(f"compiled for {arch}, but there is no nvdisasm (CUDA toolkit, or Triton) to read it")
    (cubin,) = tmp_path.glob("nm_image.*cubin")
    code = run(tool, cubin)
    for instruction in ("HMMA.SP.16832.F32.BF16 ", "HMMA.SP.16832.F32 "):
        assert instruction in code, f"{arch}: no {instruction}"
