"""Faults planted in the kernels' sources: each is caught, so that the other tests mean something."""

import shutil
from pathlib import Path

import pytest
import torch
from convolutions import Convolution, assert_convolved
from emulator import ROOT, Emulator, KernelError, build
from products import assert_added_in_order, assert_near, pack_random

import sparsekern as sk

WRONG = (AssertionError, "for")  # a number, for the one that is right
WAIT = ("cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>")

# File below csrc/cuda, what stands there, what is planted instead, and what then fails.
PLANTED = {
    "a race": ("tile/block_tile.h", "      __syncthreads();\n", "", KernelError, "race|under way|nobody has written"),
    "a missing wait": ("tile/block_tile.h", *WAIT, KernelError, "not waited for"),
    "a race in a warp": ("tile/warp_pipeline.h", "    __syncwarp();\n", "", KernelError, "race|under way"),
    "a missing wait of a warp": ("tile/warp_pipeline.h", *WAIT, KernelError, "not waited for"),
    "metadata of the next row": ("nm_linear.cu", "(2 * g + q % 2) * 4", "(2 * (g ^ 1) + q % 2) * 4", *WRONG),
    "metadata of the wrong lanes": ("nm_linear.cu", "q / 2 : 0", "1 - q / 2 : 0", *WRONG),
    "tokens beyond the last": ("block_linear.cu", "token < call.tokens;", "true;", KernelError, "read of 16 bytes"),
    "pixels beyond the last": ("block_conv.cu", "if (pixel >= p.call.tokens)", "if (false)", KernelError, "read of 16"),
    "taps beside the image": (
        "block_conv.cu",
        "left_ + right < uint32_t(images.width.in)",
        "true",
        KernelError,
        "read of 16",
    ),
    "taps beyond the kernel": ("block_conv.cu", "input < int(p_.call.inputs)", "true", *WRONG),
    "a number beyond the row": ("tile/epilogue.h", "if (first + n < call.outputs)", "", KernelError, "of y|race"),
    "a swizzle forgotten": ("tile/swizzle.h", "(chunk ^ (row & 7))", "chunk", AssertionError, "conflicts"),
    "a part forgotten": ("add_partials.cu", "int part = 0;", "int part = 1;", *WRONG),
    "a part's inputs in all": ("block_decode.cu", "p.call.split.count * kWarps", "kWarps", *WRONG),
    "another order of parts": (
        "add_partials.cu",
        "at(part,",
        "at(call.split.count - 1 - part,",
        AssertionError,
        "order",
    ),
    "parts in one place": ("tile/reduce.h", "at(blockIdx.z,", "at(0,", KernelError, "race: write of partials"),
    "a strip's padding left out": (
        "tile/reduce.h",
        "if (call.split.count > 1)",
        "if (call.split.count > 1 && output + row < call.outputs)",
        KernelError,
        "partials .* nobody has written",
    ),
    "a column too far": ("tile/block_entries.h", "weight.columns + entry)", "weight.columns + entry) + 1", *WRONG),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted(machine: list[Path], tmp_path: Path, fault: str) -> None:
    file, right, wrong, error, message = PLANTED[fault]
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    source = csrc / "cuda" / file
    text = source.read_text()
    assert right in text
    source.write_text(text.replace(right, wrong, 1))
    emulator = Emulator(build(tmp_path, machine, csrc))
    with pytest.raises(error, match=message):
        run_all(emulator)


def test_nothing_planted(emulator: Emulator) -> None:
    run_all(emulator)


def run_all(emulator: Emulator) -> None:
    """Long enough that each stage of a pipeline is filled again."""
    emulator.counters()
    # Blocks over several taps, of which the last reaches beyond the kernel, to rows that no tap falls on.
    torch.manual_seed(0)
    case = Convolution((16, 64), 40, 48, (3, 3), (11, 9), stride=(4, 1), padding=(0, 1))
    packed, images = case.packed(torch.bfloat16, 0.3), case.image(torch.bfloat16)
    images[:, :, 3::4] = float("nan")
    y = emulator.conv("block_conv_h16", packed, images, case.numbers)
    assert_convolved(case, y, images, packed, unit=0.51)
    for tokens, inputs, block_kernel, nm_kernel in (
        (70, 320, "block_h16", "nm_2_4"),
        (9, 2048, "block_decode_h16", "nm_2_4_decode"),
    ):
        blocks = pack_random((130, inputs), sk.Block(16, 32), 0.5, torch.bfloat16, seed=1)
        two_of_four = pack_random((144, inputs), sk.NM(2, 4), 0.5, torch.bfloat16, seed=2)
        x = torch.randn(tokens, inputs).bfloat16()
        assert_near(emulator.blocks(block_kernel, blocks, x), x, blocks.to_dense())
        assert_near(emulator.nm(nm_kernel, two_of_four, x), x, two_of_four.to_dense())
    # The last ones, with strips in parts.
    assert_near(emulator.blocks(block_kernel, blocks, x, parts=3), x, blocks.to_dense())
    assert_near(emulator.nm(nm_kernel, two_of_four, x, parts=3), x, two_of_four.to_dense())
    assert_added_in_order(emulator.blocks, block_kernel, blocks.granularity)
    conflicts = [access for access in emulator.counters().of("ldmatrix") if access.taken > access.least]
    assert not conflicts, f"bank conflicts: {conflicts}"
