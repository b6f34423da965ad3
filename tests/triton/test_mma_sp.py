"""The experimental kernel of 2:4 on sparse tensor cores: its PTX is executed, and its machine code looked at."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from offline import CUOBJDUMP, TYPES, stack_bytes, triton
from ptx import Program
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

import sparsekern as sk
from sparsekern.backends.triton import ops
from sparsekern.backends.triton.kernels import mma_sp

if ops.INTERPRET:
    pytest.skip("compiles, which TRITON_INTERPRET=1 turns off", allow_module_level=True)

KERNEL = mma_sp.nm_linear_mma_sp_kernel


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        yield


def compiled(capability: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    """The kernel for any numbers, but pointers to whole lines."""
    types = [TYPES[a.dtype] if isinstance(a, Tensor) else "i32" for a in arguments]
    signature = dict(zip(KERNEL.arg_names, [*types, *("constexpr" for _ in constants)], strict=True))
    aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(arguments) if isinstance(a, Tensor)}
    source = GluonASTSource(KERNEL, signature, constants, aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": mma_sp.WARPS.value})


class Emulated:
    """Stands for the kernel, and executes its PTX."""

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            assert num_warps == mma_sp.WARPS.value
            Program(compiled(80, arguments, constants).asm["ptx"], 32 * num_warps).run(grid, arguments)

        return launch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("outputs, inputs, tokens", [(16, 32, 8), (64, 64, 64), (40, 70, 5), (130, 102, 67)])
def test_the_ptx_computes_the_product(
    outputs: int, inputs: int, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small integers, so that sums are exact and a single weight in a wrong place shows.
    weight, x = torch.randint(-5, 6, (outputs, inputs)).to(dtype), torch.randint(-2, 3, (tokens, inputs)).to(dtype)
    packed = sk.pack(weight * sk.make_mask(weight, sk.NM(2, 4)), sk.NM(2, 4))
    monkeypatch.setattr(mma_sp, "nm_linear_mma_sp_kernel", Emulated())
    y = mma_sp.nm_linear_mma_sp(x, *packed.tensors, outputs)
    assert torch.equal(y, (x.double() @ packed.to_dense().double().T).to(dtype))


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_operands_stay_in_registers(capability: int, tmp_path: Path) -> None:
    words = torch.empty(0, dtype=torch.int32)
    arguments = (words, words, words, torch.empty(0, dtype=torch.bfloat16), 64, 64, 64, 64, 4)
    kernel = compiled(capability, arguments, {"TOKEN_TILES": 8, "BF16": True})
    assert kernel.metadata.shared == 0 and stack_bytes(kernel, tmp_path) == 0
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [CUOBJDUMP, "-sass", tmp_path / "kernel.cubin"]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert code.count("HMMA.SP") == 8, "one for each tile of tokens"
    assert "LDG.E.128" in code, "a lane's weights are loaded at once"
    assert not [word for word in ("LDS", "STS", "BAR.SYNC", "SHFL") if word in code]
