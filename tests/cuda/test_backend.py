"""The CUDA back end where there is no GPU: its table, its refusals, its library, and what doctor says of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsekern as sk
from sparsekern import _native
from sparsekern.backends import CudaBackend, ReferenceBackend, TritonBackend, gpu as gpu_module
from sparsekern.backends.cuda import device_refusal
from sparsekern.cli import doctor
from sparsekern.plan import Request, backends, kernel_name, refusals, select

ROOT = Path(__file__).resolve().parents[2]
BF16, ON_GPU = torch.bfloat16, "cuda"
# Where there is nvcc the library must be there, unless it was left out on purpose.
built = pytest.mark.skipif(
    not _native.CUDA_LIBRARY.exists() and (shutil.which("nvcc") is None or os.environ.get("SPARSEKERN_CUDA") == "0"),
    reason="the CUDA library is not built: nvcc is not on the PATH, or SPARSEKERN_CUDA=0",
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said where there is no GPU; here is one")


@pytest.fixture
def backend() -> CudaBackend:
    (found,) = (backend for backend in backends() if backend.name == "cuda")
    return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU that the kernels run on, and the library."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    monkeypatch.setattr("sparsekern.backends.cuda.load_cuda", lambda: None)
    monkeypatch.setattr("sparsekern.backends.cuda.cuda_refusal", lambda: None)
    # What was found before, and what is found now, must not be remembered.
    monkeypatch.setattr("sparsekern.backends.cuda.device_refusal", device_refusal.__wrapped__)


@pytest.mark.needs_native
def test_the_table(backend: CudaBackend) -> None:
    records = {record.name: record for record in backend.kernels()}
    assert len(records) == len(backend.kernels()) >= 16
    assert {record.op for record in records.values()} == {
        "block_linear", "block_linear_grad_input", "block_linear_grad_values", "block_conv2d", "nm_linear"
    }  # fmt: skip
    assert records["block_h64"].takes == "64n x 16n" and records["block_grad_values_h32"].takes == "32n x 32n"
    assert records["nm_2_4"].takes == "2:4" and records["nm_2_4"].tokens == ">= 17"
    if not torch.cuda.is_available():
        assert not any(record.runs_here for record in records.values())


@pytest.mark.needs_native
@pytest.mark.parametrize(
    ("granularity", "tokens", "kernel"),
    [
        (sk.Block(128, 16), 17, "block_h128"), (sk.Block(256, 32), 9999, "block_h128"),
        (sk.Block(64, 64), 64, "block_h64"), (sk.Block(96, 16), 17, "block_h32"), (sk.Block(48, 16), 17, "block_h16"),
        (sk.Block(128, 128), 16, "block_decode_h32"), (sk.Block(16, 16), 1, "block_decode_h16"),
        (sk.Block(16, 16), 0, "block_decode_h16"), (sk.NM(2, 4), 16, "nm_2_4_decode"), (sk.NM(2, 4), 17, "nm_2_4"),
    ],
)  # fmt: skip
def test_the_kernel_that_is_chosen(backend: CudaBackend, granularity: sk.Granularity, tokens: int, kernel: str) -> None:
    assert backend.kernel_name(Request(granularity, (512, 512), BF16, ON_GPU), tokens) == kernel


@pytest.mark.parametrize(
    ("granularity", "dtype", "reason"),
    [
        (sk.Block(64, 64), BF16, None), (sk.Block(48, 16), torch.float16, None), (sk.NM(2, 4), BF16, None),
        (sk.Block(64, 64), torch.float32, "no kernel for torch.float32; bfloat16 and float16 have them"),
        (sk.Block(16, 1), BF16, "sides of 16x1 are no multiples of 16"), (sk.Block(8, 16), BF16, "no multiples of 16"),
        (sk.NM(1, 4), BF16, "no kernel for 1:4; 2:4 has one"), (sk.NM(2, 4, 16), BF16, "no kernel for 2:4x16"),
        (sk.Unstructured(), BF16, "no kernel for unstructured"),
    ],
)  # fmt: skip
def test_what_it_refuses(
    backend: CudaBackend, gpu: None, granularity: sk.Granularity, dtype: torch.dtype, reason: str | None
) -> None:
    told = backend.refusal(Request(granularity, (512, 512), dtype, ON_GPU))
    assert told is None if reason is None else told is not None and reason in told


def test_too_many_blocks_are_refused(backend: CudaBackend, gpu: None) -> None:
    request = Request(sk.Block(16, 16), (2**20, 16 * 65535), BF16, ON_GPU)
    assert "65536 x 65535 blocks are more than the kernels count" in str(backend.refusal(request))
    assert backend.refusal(Request(sk.Block(16, 16), (2**19, 16 * 65535), BF16, ON_GPU)) is None  # just below 2^31


def test_an_old_gpu_is_named_whichever_it_is(backend: CudaBackend, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device == 0 else (7, 5))
    told = backend.refusal(Request(sk.Block(16, 16), (64, 64), BF16, ON_GPU))
    assert told == "the GPU is sm_75, kernels run from sm_80 on"


def test_what_cuda_refuses_is_named(backend: CudaBackend, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsekern.backends.cuda.cuda_refusal", lambda: "CUDA driver version is insufficient")
    told = backend.refusal(Request(sk.Block(16, 16), (64, 64), BF16, ON_GPU))
    assert told == "CUDA refuses the kernels on GPU 0: CUDA driver version is insufficient"


@built
@no_gpu
def test_cuda_itself_is_asked() -> None:
    """Here it has no driver, and says so."""
    told = in_a_new_process(
        "from sparsekern._native import cuda_refusal, load_cuda; load_cuda(); print(cuda_refusal())"
    )
    assert "CUDA" in told


@no_gpu
def test_without_a_gpu_the_reasons_say_so() -> None:
    request = Request(sk.Block(16, 16), (64, 64), BF16, ON_GPU)
    assert select(request).name == "reference"
    assert refusals(request)["cuda"] == "PyTorch finds no CUDA device"


def test_a_gpu_without_kernels_says_what_to_install(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsekern.backends.cuda.load_cuda", lambda: "the CUDA library is not built")
    monkeypatch.setattr("sparsekern.backends.triton.backend.find_spec", lambda name: None)
    monkeypatch.setattr("sparsekern.backends.triton.backend._device_refusal", lambda: "Triton is not installed")
    with pytest.raises(
        RuntimeError, match=r"16x16 torch.bfloat16 on cuda: .*CUDA toolkit.*, or pip install triton; or"
    ):
        select(Request(sk.Block(16, 16), (64, 64), BF16, ON_GPU))
    # What no installation would serve, and what is on the CPU, is served as before.
    assert select(Request(sk.Unstructured(), (64, 64), BF16, ON_GPU)).name == "reference"
    assert select(Request(sk.Block(16, 16), (64, 64), torch.float16, "cpu")).name == "reference"


def test_one_of_the_two_is_enough(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsekern.backends.cuda.load_cuda", lambda: "the CUDA library is not built")
    monkeypatch.setattr("sparsekern.backends.triton.backend._device_refusal", lambda: None)
    assert select(Request(sk.Block(16, 16), (64, 64), BF16, ON_GPU)).name == "triton"


def in_a_new_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@built
def test_the_library_loads_when_it_is_asked_for() -> None:
    """Also beside a PyTorch without CUDA, whose dispatcher then knows the kernels."""
    told = in_a_new_process(
        "import torch, sparsekern as sk\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "ops = ['block_linear', 'nm_linear', 'block_linear_grad_input', 'block_linear_grad_values', 'block_conv2d']\n"
        "sk.linear(torch.ones(2, 16), sk.pack(torch.ones(16, 16), sk.Block(16, 16)))\n"
        "assert not any(has(f'sparsekern::{op}', 'CUDA') for op in ops)\n"
        "from sparsekern._native import load_cuda\n"
        "assert load_cuda() is None, load_cuda()\n"
        "assert all(has(f'sparsekern::{op}', 'CUDA') for op in ops)\n"
        "print('ok')"
    )
    assert told == "ok\n"


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "CUDA_LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(_native, "native", object())
    assert _native.load_cuda.__wrapped__() == "the CUDA library is not built (python -m sparsekern doctor says why)"
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(_native, "CUDA_LIBRARY", broken)
    assert "the CUDA library does not load" in str(_native.load_cuda.__wrapped__())


def test_doctor_says_why_it_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "build_info.json"
    why = {"built": False, "reason": "nvcc was not found", "fix": "install a CUDA toolkit"}
    record.write_text(json.dumps({"native": True, "cuda": why}))
    monkeypatch.setattr(doctor, "BUILD_RECORD", record)
    facts = doctor.cuda_facts()
    assert not facts["built"] and not facts["active"] and facts["reason"] == "nvcc was not found"
    assert doctor._describe_cuda(facts) == "not built; not active: nvcc was not found; install a CUDA toolkit"


@built
@no_gpu
def test_doctor_says_why_it_is_not_active() -> None:
    facts = doctor.cuda_facts()
    assert facts["built"] and not facts["active"] and {"sm_80", "sm_90"} <= {*facts["archs"]}
    assert "PyTorch" in facts["reason"] and facts["fix"]


@built
@pytest.mark.skipif(shutil.which("c++filt") is None, reason="finds kernels by demangled names: no c++filt (binutils)")
@pytest.mark.parametrize("kernel", ["", "block_decode_h32"])
def test_its_code_is_shown(backend: CudaBackend, kernel: str) -> None:
    from sparsekern.listings import tools

    if tools.find("cuobjdump") is None:
        pytest.skip("reads machine code: no cuobjdump, pip install triton brings it")
    code = backend.code(kernel, Request(sk.Block(64, 64), (512, 512), BF16, ON_GPU), 128, "sm_80")
    assert code is not None and code.target == "sm_80"
    assert next(listing for listing in code.listings if listing.title == "main loop").mix["HMMA"] > 0


def test_no_code_without_a_target(backend: CudaBackend) -> None:
    assert backend.code("", Request(sk.Block(64, 64), (512, 512), BF16, ON_GPU), 128, None) is None
    assert backend.code("", Request(sk.Block(64, 1), (512, 512), BF16, ON_GPU), 128, "sm_80") is None


# ---- handing over --------------------------------------------------------------------------------


@pytest.fixture
def both(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, CUDA and Triton kernels, and nothing remembered of what was there before."""
    monkeypatch.setattr("sparsekern.backends.triton.backend._device_refusal", lambda: None)
    for name in ("_ranked", "_offered", "least_capability"):
        monkeypatch.setattr(f"sparsekern.backends.gpu.{name}", getattr(gpu_module, name).__wrapped__)


@pytest.mark.needs_native
def test_a_product_is_handed_to_the_one_that_the_model_takes(both: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reports name it too. Nothing is multiplied here: the products of the back ends are replaced."""
    served: list[str] = []
    monkeypatch.setattr(CudaBackend, "product", lambda self, *rest: served.append(self.name))
    monkeypatch.setattr(TritonBackend, "product", lambda self, *rest: served.append(self.name))
    monkeypatch.setattr(ReferenceBackend, "linear", lambda self, *rest: served.append(self.name))
    block, shape = sk.Block(64, 64), (8192, 8192)
    backend = select(Request(block, shape, BF16, ON_GPU))
    assert backend.name == "cuda"
    for density, tokens, taken in ((0.25, 8192, "cuda"), (1.0, 8192, "reference"), (1.0, 16, "cuda")):
        stored = round(density * shape[0] * shape[1])
        x, values = (
            torch.empty(tokens, shape[1], dtype=BF16, device="meta"),
            torch.empty(stored, dtype=BF16, device="meta"),
        )
        backend.linear(x, block, shape, [values], None, "none")
        assert served.pop() == taken == backend.serving(Request(block, shape, BF16, ON_GPU), stored, tokens).name
        assert kernel_name(Request(block, shape, BF16, ON_GPU), stored, tokens).startswith(
            "reference" if taken == "reference" else "block"
        )
    monkeypatch.setattr("sparsekern.plan.gpu.SECONDS", {"cuda": lambda *_: 2.0, "triton": lambda *_: 1.0})
    backend.linear(torch.empty(512, 8192, dtype=BF16, device="meta"), block, shape, [values], None, "none")
    assert served == ["triton"]
    assert kernel_name(Request(block, shape, BF16, ON_GPU), stored, 512) == "triton_block"


def test_without_a_gpu_a_graph_for_one_is_made_as_for_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_module.least_capability.__wrapped__() == 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_compiler_keeps_the_choice_or_leaves_the_number_of_tokens_open(
    monkeypatch: pytest.MonkeyPatch, dynamic: bool
) -> None:
    """On a CPU, with products that PyTorch multiplies: what is compiled is the choice."""
    asked: list[int] = []

    def fastest(spec: str, shape: tuple[int, int], dtype: torch.dtype, stored: int, tokens: int) -> str:
        asked.append(tokens)
        return "reference"

    fastest._dynamo_marked_constant = True  # type: ignore[attr-defined]
    monkeypatch.setattr(gpu_module, "_fastest", fastest)
    monkeypatch.setattr(CudaBackend, "product", lambda self, x, granularity, shape, tensors, *rest: x @ tensors[0].T)
    monkeypatch.setattr(
        ReferenceBackend, "linear", lambda self, x, granularity, shape, tensors, *rest: -x @ tensors[0].T
    )
    backend, values = CudaBackend(), torch.randn(16, 32)
    granularity = sk.pack(values, sk.Block(16, 16)).granularity

    @torch.compile(backend="eager", fullgraph=True, dynamic=dynamic)
    def layer(x: torch.Tensor) -> torch.Tensor:
        return backend.linear(x, granularity, (16, 32), [values], None, "none")

    for tokens in (24, 40):
        x = torch.randn(tokens, 32)
        if dynamic:
            torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(layer(x), (1 if dynamic else -1) * (x @ values.T))
    assert set(asked) == (set() if dynamic else {24, 40})
