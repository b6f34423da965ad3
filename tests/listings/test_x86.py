"""x86-64 machine code: what is counted as what, which loop is the main one, and both on the compiled library."""

from __future__ import annotations

import platform
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import sparsekern as sk
from sparsekern import _native
from sparsekern.listings import Instruction, UnreadableError, x86
from sparsekern.listings.code import innermost_loops, short
from sparsekern.plan import Request
from sparsekern.plan.registry import FAMILIES, backend_named

needs_library = [
    pytest.mark.needs_native,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 machine code"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (Debian: binutils)"),
]

KINDS = {
    # AVX2
    "vfmadd231ps %ymm2,%ymm1,%ymm14": "multiply-adds",
    "vfmadd231ps 0x20(%rdx,%rax,4),%ymm1,%ymm14": "multiply-adds",
    "vfnmadd213ps %xmm2,%xmm1,%xmm14": "multiply-adds",
    "vbroadcastss -0x18(%rax),%ymm2": "loads",
    "vmovups (%rdx),%ymm1": "loads",
    "vmovups %ymm1,(%rdx)": "stores",
    "vmovaps %ymm1,%ymm2": "other vector",
    "vbroadcastss %xmm1,%ymm2": "shuffles",
    "vpermilps %ymm3,%ymm2,%ymm1": "shuffles",
    "vpermilps 0x291677(%rip),%ymm0,%ymm0": "shuffles",
    "vunpcklps %ymm3,%ymm2,%ymm1": "shuffles",
    "vaddps %ymm3,%ymm2,%ymm1": "other vector",
    "vmulps %ymm3,%ymm2,%ymm1": "other vector",
    "vfmadd231ss %xmm2,%xmm1,%xmm14": "other vector",
    "prefetcht0 (%rdx,%rdi,1)": "prefetches",
    "movzwl (%rsi),%eax": "scalar",
    "add $0x18,%rax": "scalar",
    "data16 cs nopw 0x0(%rax,%rax,1)": "scalar",
    "jne 70ec0": "branches",
    "bnd jmp 70ec0": "branches",
    "ret": "branches",
    # AVX-512
    "vfmadd231ps (%rax){1to16},%zmm1,%zmm2": "multiply-adds",
    "vdpbf16ps -0x40(%r9){1to16},%zmm31,%zmm8": "multiply-adds",
    "vmovups (%rax),%zmm1{%k1}{z}": "loads",
    "vmovups %zmm1,(%rax){%k1}": "stores",
    "vpermt2w %zmm3,%zmm2,%zmm1": "shuffles",
    "vpbroadcastd (%rsi,%rcx,4),%zmm3": "loads",
    "kmovw %eax,%k1": "scalar",
    # AMX
    "tileloadd (%rax,%rdx,1),%tmm4": "loads",
    "tdpbf16ps %tmm6,%tmm4,%tmm0": "multiply-adds",
    "tilestored %tmm0,(%rdi,%rsi,1)": "stores",
    "tilezero %tmm0": "other vector",
    # SSE
    "mulps %xmm1,%xmm2": "multiply-adds",
    "addps %xmm1,%xmm2": "other vector",
    "movups (%rax),%xmm1": "loads",
}


@pytest.mark.parametrize("text", KINDS)
def test_kind_of_an_instruction(text: str) -> None:
    assert x86.kind(text) == KINDS[text]
    assert set(KINDS.values()) == set(x86.KINDS)


def code_of(text: str) -> list[Instruction]:
    """Instructions four bytes apart; ``name:`` in front of one is what jumps to it call it."""
    lines = [line.strip() for line in text.strip().splitlines()]
    labels = {line.split(":")[0]: f"{4 * i:x}" for i, line in enumerate(lines) if re.match(r"\w+: ", line)}
    found = []
    for i, line in enumerate(lines):
        bare = re.sub(r"^\w+: ", "", line)
        for name, address in labels.items():
            bare = re.sub(rf"^(j\w+) {name}$", rf"\1 {address} <f+0x{address}>", bare)
        found.append(x86.parse(f"{4 * i:x}", bare))
    return found


PRODUCT = """
    xor %eax,%eax
    outer: vxorps %ymm0,%ymm0,%ymm0
    vxorps %ymm1,%ymm1,%ymm1
    inner: vmovups (%rsi),%ymm2
    vfmadd231ps 0x20(%rdi),%ymm2,%ymm0
    vfmadd231ps 0x40(%rdi),%ymm2,%ymm1
    add $0x20,%rsi
    dec %rcx
    jne inner
    vmovups %ymm0,(%rdx)
    jne outer
    poly: vmovups (%rdx),%ymm3
    vmovaps %ymm8,%ymm4
    vfmadd213ps %ymm9,%ymm3,%ymm4
    vfmadd213ps %ymm10,%ymm3,%ymm4
    vfmadd213ps %ymm11,%ymm3,%ymm4
    vmovups %ymm4,(%rdx)
    jne poly
    ret
"""
"""A product of two sums in a loop over rows, and a polynomial with more multiply-adds behind it."""


def test_the_planted_loop_is_found_among_others() -> None:
    loops = innermost_loops(code_of(PRODUCT), lambda text: "vfmadd" in text)
    assert [(loop[0].address, loop[-1].address) for loop in loops] == [(4 * 3, 4 * 8), (4 * 11, 4 * 17)]
    function = x86.Function("f", "")
    candidates = [x86.Loop(function, tuple(loop)) for loop in loops]
    assert x86.main_loop(candidates) == candidates[0]
    assert x86.accumulators(candidates[0].body) == {"%xmm0", "%xmm1"}
    assert x86.accumulators(candidates[1].body) == set()
    assert (x86.multiply_adds(loops[0]), x86.vector_reads(loops[0])) == (2, 3)


def test_loops_without_what_matters_hide_none_that_hold_them() -> None:
    nested = code_of("a: nop\nb: movzwl (%rsi),%eax\njne b\nvfmadd231ps %ymm1,%ymm2,%ymm3\njne a")
    (loop,) = innermost_loops(nested, lambda text: "vfmadd" in text)
    assert len(loop) == 5
    assert innermost_loops(nested, lambda text: "vdpbf16ps" in text) == []


@pytest.mark.parametrize(
    ("body", "sums"),
    [
        # The sum goes to another register and comes back from it in the second copy of the body.
        ("vfmadd132ps (%rdi),%ymm0,%ymm1\nvmovups (%rsi),%ymm0\nvfmadd132ps (%rdi),%ymm1,%ymm0", {"%xmm0"}),
        ("vfmadd213ps %ymm0,%ymm5,%ymm1\nvmovaps %ymm1,%ymm0", {"%xmm0"}),
        # There is no register left.
        ("vmovaps 0x40(%rsp),%ymm1\nvfmadd231ps %ymm2,%ymm3,%ymm1\nvmovaps %ymm1,0x40(%rsp)", {"0x40(%rsp)"}),
        # Elsewhere in memory it may be another sum the next time.
        ("vmovaps (%rdx),%ymm1\nvfmadd231ps %ymm2,%ymm3,%ymm1\nvmovaps %ymm1,(%rdx)", set()),
        ("vfmadd231ps %ymm2,%ymm3,%ymm1\nvmaxps %ymm1,%ymm4,%ymm1", set()),
        ("vmovaps %ymm1,%ymm0", set()),
        ("vfmadd231ps %ymm2,%ymm3,%ymm1\nvpmovzxwd %xmm1,%ymm1", set()),
        ("vdpbf16ps %zmm2,%zmm3,%zmm1\ntdpbf16ps %tmm6,%tmm4,%tmm0", {"%tmm0", "%xmm1"}),
        ("mulps %xmm3,%xmm2\naddps %xmm2,%xmm1", {"%xmm1"}),
    ],
)
def test_accumulators_are_followed(body: str, sums: set[str]) -> None:
    assert x86.accumulators(code_of(body)) == sums


def test_forms_narrow_the_choice_down_to_the_first_that_exists() -> None:
    body = tuple(code_of("a: vfmadd231ps %ymm1,%ymm2,%ymm3\njne a"))
    larger = tuple(code_of("a: vfmadd231ps %ymm1,%ymm2,%ymm3\nvfmadd231ps %ymm1,%ymm2,%ymm4\njne a"))
    loops = [x86.Loop(x86.Function(name, ""), of) for name, of in (("g<2, 4>", body), ("g<0>", larger))]
    assert x86.main_loop(loops) == loops[1]
    assert x86.main_loop(loops, ("g<8>", "g<2, 4>", "g<0>")) == loops[0]
    assert x86.main_loop(loops, ("g<8>",)) == loops[1]
    assert x86.main_loop([]) is None


def test_short_names() -> None:
    name = "void sparsekern::avx2::(anonymous namespace)::Strip<sparsekern::avx2::Vec8, 4>::run<true>(float const*)"
    assert short(name) == "Strip<Vec8, 4>::run<true>"


# ---- the compiled library ------------------------------------------------------------------------


class TestLibrary:
    pytestmark = needs_library

    @pytest.fixture(autouse=True)
    def library(self) -> Path:
        return Path(_native.native.__file__)

    @pytest.mark.parametrize("name", [line["name"] for line in _native.native.kernels()] if _native.native else [])
    def test_main_loops_hold_the_tile_of_the_kernel_table(self, name: str, library: Path) -> None:
        line = next(line for line in _native.native.kernels() if line["name"] == name)
        (loop,) = x86.kernel_code(name, line["isa"], library, f"sparsekern_{name}").listings
        assert sum(loop.mix.values()) == loop.facts["instructions"] == len(loop.lines)
        sums = line["outputs"] * line["panel"] // line["lanes"]
        if line["family"] == "tiles":
            assert loop.facts["accumulators"] == loop.mix["multiply-adds"] == 4  # of 16 x 16 each
        elif line["family"] in FAMILIES and sums >= 8:
            assert loop.facts["accumulators"] == sums
        else:
            # Where a tile has few sums, several inputs or rows are summed up side by side.
            assert loop.facts["accumulators"] >= sums
        assert loop.mix["multiply-adds"] >= loop.facts["accumulators"]

    def test_16x1_as_its_source_says(self, library: Path) -> None:
        """Two vectors of outputs by six tokens: docs/kernels.md gives 12 multiply-adds and 8 loads."""
        (loop,) = x86.kernel_code("outputs_r16_avx2", "avx2", library, "sparsekern_outputs_r16_avx2").listings
        assert loop.mix["multiply-adds"] == 12 and loop.mix["loads"] == 8 and loop.facts["vector reads"] == 8
        names = Counter(line.split()[1] for line in loop.lines)
        assert names["vfmadd231ps"] == 12 and names["vbroadcastss"] == 6 and names["vmovups"] == 2
        assert all(re.fullmatch(r" *[0-9a-f]+  \S.*", line) for line in loop.lines)

    @pytest.mark.parametrize(
        ("granularity", "kernel", "function"),
        [
            (sk.NM(2, 4), "tokens_nm_avx2", r"NMWeights<Vec8, 12, 1, 2, 4, 2>"),
            (sk.NM(4, 8), "tokens_nm_avx512", r"NMWeights<Vec16, 8, 1, 4, 8, 4>"),
            (sk.NM(3, 8), "tokens_nm_avx2", r"NMWeights<Vec8, 12, 1, 0, 0, 0>"),
            (sk.NM(2, 4), "few_nm_avx2", r"PicksStrip<Vec8, float, 2, 4, "),
            (sk.NM(2, 4), "pairs_nm_avx512_bf16", r"PairedFours<Pairs16, 4>"),
            (sk.NM(4, 8), "pairs_nm_avx512_bf16", r"PairedGroups<Pairs16, 4, 4, 8, 4>"),
        ],
    )
    def test_n_m_shows_the_loop_of_its_pattern(self, granularity: sk.NM, kernel: str, function: str) -> None:
        request = Request(granularity, (3072, 768), torch.float32, "cpu")
        code = backend_named("cpu").code(kernel, request, 128, None)
        assert code is not None and code.kernel == kernel
        assert re.match(function, str(code.listings[0].facts["function"]))

    def test_a_gpu_is_not_its_business(self) -> None:
        request = Request(sk.Block(16, 1), (64, 64), torch.float32, "cpu")
        assert backend_named("cpu").code("", request, 1, "sm_90") is None

    def test_bfloat16_on_a_float32_kernel_says_so(self) -> None:
        request = Request(sk.Block(16, 1), (64, 64), torch.bfloat16, "cpu")
        code = backend_named("cpu").code("outputs_r16_avx2", request, 128, None)
        assert code is not None and "widened" in code.notes[-1]

    def test_an_unknown_function_says_what_to_do(self, library: Path) -> None:
        with pytest.raises(UnreadableError, match=r"expected a function sparsekern_x, found none; .*pip install"):
            x86.disassemble(library, "sparsekern_x")
