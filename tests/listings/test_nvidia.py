"""Code for GPUs, on any machine: what is counted, and a small kernel compiled by nvcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sparsekern.listings import Instruction, UnreadableError, nvidia, tools

SASS = {
    "HMMA.16816.F32.BF16 R8, R4, R10, R8": "HMMA",
    "HMMA.SP.16832.F32.BF16 R8, R4, R12, R8, R2, 0x0": "HMMA.SP",
    "HGMMA.64x128x16.F32.BF16 R24, R8, gdesc[UR4], R24": "HGMMA",
    "HGMMA.SP.64x128x32.F32.BF16 R24, R8, gdesc[UR4], R24, R3": "HGMMA.SP",
    "LDGSTS.E.BYPASS.128 [R5], [R2.64]": "LDGSTS",
    "@!P0 LDG.E.128 R4, [R2.64]": "LDG",
    "LDSM.16.M88.4 R4, [R9]": "LDSM",
    "LDS.128 R4, [R9]": "LDS",
    "@P1 STG.E.128 [R2.64], R4": "STG",
    "BAR.SYNC.DEFER_BLOCKING 0x0": "BAR",
    "@!UP0 BRA 0x380": "BRA",
    "FFMA R3, R4, R5, R3": "FFMA",
    "IMAD.WIDE R2, R0, 0x4, R2": "other",
    "UTMALDG.2D [UR8], [UR4]": "UTMALDG",
}


@pytest.mark.parametrize("text", SASS)
def test_kind_of_a_machine_instruction(text: str) -> None:
    assert nvidia.sass_kind(text) == SASS[text]


def test_mix_of_ptx() -> None:
    lines = """
        .reg .b32 %r<9>;
        // a comment
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2}, {%r1}, {%r2}, {%f1, %f2};
        mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1}, %r3, 0x0;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, p, 1, 1, 0, 0;
        cp.async.cg.shared.global [%r1], [%rd1], 16;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
        @%p1 ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];
        bar.sync 0;
    $L__BB0_2:
        @%p2 bra $L__BB0_2;
        ret;
    """.splitlines()
    assert nvidia.ptx_mix(lines) == {
        "wgmma.mma_async": 1, "mma.sp": 1, "mma.sync": 1, "cp.async.bulk": 1, "cp.async": 1, "ldmatrix": 1,
        "ld.global": 1, "bar.sync": 1, "bra": 1, "other": 1,
    }  # fmt: skip


def instructions(*texts: str) -> list[Instruction]:
    targets = {i: int(text.rsplit(" ", 1)[1], 16) for i, text in enumerate(texts) if "BRA" in text}
    return [Instruction(16 * i, text, targets.get(i)) for i, text in enumerate(texts)]


def test_main_loop_is_that_of_the_tensor_cores() -> None:
    code = instructions(
        "MOV R1, R2",
        *("LDG.E R4, [R2]", "LDG.E R5, [R2]", "@P0 BRA 0x10"),
        *("LDS R4, [R2]", "FFMA R3, R4, R5, R3", "BRA 0x40"),
        # A tile is copied in a loop of its own inside of the main one.
        *("LDG.E R4, [R2]", "@P1 BRA 0x70", "HMMA.16816.F32 R8, R4, R10, R8", "@P2 BRA 0x70"),
        "EXIT",
    )
    assert [one.address for one in nvidia.main_loop(code)] == [0x70, 0x80, 0x90, 0xA0]
    without = [one for one in code if "HMMA" not in one.text]
    assert [one.address for one in nvidia.main_loop(without)] == [0x40, 0x50, 0x60]
    assert nvidia.main_loop(instructions("MOV R1, R2", "EXIT")) == []


def test_what_lies_behind_a_kernel_makes_no_loop() -> None:
    """Lanes that have parted go there from one place of the loop, and come back to the next; it is rolled out twice."""
    code = instructions(
        "MOV R1, R2",
        *("HMMA.16816.F32 R8, R4, R10, R8", "BRA.DIV UR4, 0x80", "LDSM.16.M88.4 R4, [R9]"),
        *("HMMA.16816.F32 R8, R4, R10, R8", "@!P0 BRA 0x10"),
        *("HMMA.16816.F32 R8, R4, R10, R8", "EXIT"),
        *("WARPSYNC.COLLECTIVE R24, 0x90", "BRA 0x30"),
    )
    assert [one.address for one in nvidia.main_loop(code)] == [0x10, 0x20, 0x30, 0x40, 0x50]


# ---- compiled ------------------------------------------------------------------------------------

SOURCE = """
#include <cuda_fp16.h>
#include <mma.h>
namespace planted {
template <int kTiles>
__global__ void product(const __half* a, const __half* b, float* c, int steps) {
  using namespace nvcuda;
  __shared__ __half tile[256];
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[kTiles];
  for (int t = 0; t < kTiles; ++t) wmma::fill_fragment(sums[t], 0.0f);
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    reinterpret_cast<int4*>(tile)[threadIdx.x] = reinterpret_cast<const int4*>(b)[32 * i + threadIdx.x];
    __syncthreads();
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> right;
    wmma::load_matrix_sync(right, tile, 16);
    for (int t = 0; t < kTiles; ++t) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> left;
      wmma::load_matrix_sync(left, a + 256 * (kTiles * i + t), 16);
      wmma::mma_sync(sums[t], left, right, sums[t]);
    }
    __syncthreads();
  }
  for (int t = 0; t < kTiles; ++t) wmma::store_matrix_sync(c + 256 * t, sums[t], 16, wmma::mem_row_major);
}
template __global__ void product<1>(const __half*, const __half*, float*, int);
template __global__ void product<3>(const __half*, const __half*, float*, int);
}  // namespace planted
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("compiles a kernel: nvcc is not on the PATH, install a CUDA toolkit")
    if tools.find("cuobjdump") is None:
        pytest.skip("reads machine code: no cuobjdump, pip install triton brings it")
    folder = tmp_path_factory.mktemp("nvidia")
    (folder / "planted.cu").write_text(SOURCE)
    archs = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", "-cudart=none", *archs, "planted.cu", "-o", "planted.so"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "planted.so"


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("tiles", [1, 3])
def test_a_planted_kernel(library: Path, target: str, tiles: int) -> None:
    code = nvidia.kernel_code("planted", library, rf"product<(\(int\))?{tiles}>|productILi{tiles}E", target)
    assert (code.kernel, code.target, code.source) == ("planted", target, "planted.so")
    ptx, whole, loop = code.listings
    assert [one.title for one in code.listings] == ["ptx", "machine code", "main loop"]
    # A product of 16x16x16 is two HMMA.
    assert ptx.mix["wmma.mma"] == tiles and ptx.mix["bar.sync"] == 2
    assert whole.mix["HMMA"] == loop.mix["HMMA"] == 2 * tiles
    assert loop.mix["BAR"] == 2 and loop.mix["STS"] == 1
    assert whole.mix["STG"] == 4 * tiles and "STG" not in loop.mix
    assert sum(whole.mix.values()) == whole.facts["instructions"] == len(whole.lines)
    assert int(whole.facts["registers"]) >= 8 * tiles and whole.facts["stack bytes"] == 0
    assert int(whole.facts["static shared bytes"]) >= 512
    assert whole.lines[-1].endswith("EXIT")


def test_what_is_not_there_is_listed(library: Path) -> None:
    assert nvidia.targets(library) == ["sm_80", "sm_90"]
    with pytest.raises(UnreadableError, match=r"^planted.so: expected code for sm_75, found sm_80, sm_90"):
        nvidia.kernel_code("planted", library, "product", "sm_75")
    for pattern in ("product", "other"):
        with pytest.raises(UnreadableError, match=rf"expected one kernel '{pattern}' for sm_80, found .*product"):
            nvidia.kernel_code("planted", library, pattern, "sm_80")
