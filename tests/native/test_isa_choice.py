"""``SPARSEKERN_ISA`` lowers the level of the kernels that are chosen, and nothing else is silently accepted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparsekern import _native

if _native.native is None:
    pytest.skip(f"no native kernels: {_native.failure}", allow_module_level=True)

LEVELS = ["portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"]
"""Ascending; the last two have kernels of bfloat16 and leave float32, and some bfloat16, to those before."""
SUPPORTED = _native.native.isa_supported()
CHOICES = """
import sparsekern
from sparsekern._native import native
tokens = (1, 6, 16, 24, 400)
for values in ("float32", "bfloat16"):
    print(native.isa(), *(native.choose("block", rows, n, values) for rows in (1, 4, 8, 16, 32, 48) for n in tokens),
          *(native.choose("nm", 1, n, values) for n in tokens))
"""


def started_with(isa: str, code: str = CHOICES) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPARSEKERN_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("isa", SUPPORTED)
def test_a_level_chooses_its_own_kernels(isa: str) -> None:
    done = started_with(isa)
    assert done.returncode == 0, done.stderr
    from_avx512 = LEVELS[2 : LEVELS.index(isa) + 1]
    of_float32, of_bfloat16 = (["avx512"], from_avx512) if from_avx512 else ([isa], [isa])
    for line, levels in zip(done.stdout.splitlines(), (of_float32, of_bfloat16), strict=True):
        level, *chosen = line.split()
        assert level == isa
        assert len(chosen) == 35
        assert {name.split("_", 2)[2] for name in chosen} == set(levels)


def test_an_empty_variable_means_the_highest_level() -> None:
    assert started_with("").stdout.split()[0] == SUPPORTED[-1]


@pytest.mark.parametrize("isa", [*LEVELS[len(SUPPORTED) :], "AVX2", "sse", "none", "avx512 "])
def test_other_names_are_refused(isa: str) -> None:
    done = started_with(isa)
    assert done.returncode != 0
    assert f"SPARSEKERN_ISA={isa}: expected one of {', '.join(SUPPORTED)}" in done.stderr
    assert "unset the variable" in done.stderr


def test_the_level_can_be_lowered_and_restored_in_a_process() -> None:
    before = _native.native.isa()
    for isa in [*SUPPORTED, before]:
        _native.native.set_isa(isa)
        assert _native.native.isa() == isa
        assert _native.native.choose("block", 16, 64, "bfloat16").endswith(isa)


@pytest.mark.parametrize("isa", [*LEVELS[len(SUPPORTED) :], "", "fast"])
def test_setting_another_level_raises_and_changes_nothing(isa: str) -> None:
    before = _native.native.isa()
    with pytest.raises(ValueError, match=f"instruction set '{isa}' is not supported by this CPU"):
        _native.native.set_isa(isa)
    assert _native.native.isa() == before


def test_every_level_below_the_highest_is_supported() -> None:
    assert SUPPORTED == LEVELS[: len(SUPPORTED)]
