"""Triton's stages: of a small kernel compiled offline, and of texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekern.listings import triton_stages

KERNEL = """
import dataclasses, json, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparsekern.listings import triton_stages

@triton.jit
def scale(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * 3.0, mask=i < n)

aligned = {(i,): [["tt.divisibility", 16]] for i in (0, 1, 2)}
source = ASTSource(scale, {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"}, {"BLOCK": 512}, aligned)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
json.dump(dataclasses.asdict(triton_stages.kernel_code("scale", compiled)), sys.stdout)
"""


def test_stages_of_a_kernel_compiled_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "scale.py").write_text(KERNEL)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_DEFAULT_FP_FUSION": "1"}
    root = Path(triton_stages.__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run([sys.executable, "scale.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    code = json.loads(ran.stdout)
    stages = {one["title"]: one for one in code["listings"]}
    assert list(stages) == ["ttir", "ttgir", "llir", "ptx", "machine code"]
    assert code["target"] == "sm_90" and "4 warps" in code["notes"][0]
    assert any("tt.load" in line for line in stages["ttir"]["lines"])
    assert any("#blocked" in line for line in stages["ttgir"]["lines"])
    assert any("fmul float" in line for line in stages["llir"]["lines"])
    # 512 numbers by 128 threads of 16 bytes each.
    assert stages["ptx"]["mix"]["ld.global"] == stages["ptx"]["mix"]["st.global"] == 1
    assert stages["machine code"]["mix"]["LDG"] == stages["machine code"]["mix"]["STG"] == 1
    for stage in ("ttir", "ttgir", "llir", "ptx"):
        assert 0 < len(stages[stage]["lines"]) < stages[stage]["facts"]["lines"]
        assert not [line for line in stages[stage]["lines"] if "#loc" in line or "!dbg" in line or ".loc" in line]


def test_places_in_the_source_are_left_out_and_nothing_else() -> None:
    ttir = '#loc = loc("a.py":1:1)\nmodule {\n  %0 = tt.splat %x : i32 loc(#loc7)\n} loc(#loc)\n'
    ptx = "// by\n\t.loc 1 7 0\n\tadd.s32 %r1, %r2, %r3;  // why\n$L__tmp0:\n$L__BB0_1:\n\t.section .debug_abbrev\nx\n"
    found = triton_stages.stages({"ttir": ttir, "ptx": ptx, "cubin": b""})
    assert [(one.title, one.facts["lines"]) for one in found] == [("ttir", 4), ("ptx", 7)]
    assert found[0].lines == ("module {", "  %0 = tt.splat %x : i32", "}")
    assert found[1].lines == ("\tadd.s32 %r1, %r2, %r3;", "$L__BB0_1:") and found[1].mix == {"other": 1}
