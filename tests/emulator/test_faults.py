"""What the emulator must not let pass, and what it must: kernels of faults.cu."""

import pytest
from emulator import Emulator, KernelError

RIGHT = [
    *("copies", "writes_apart", "reads_what_the_last_launch_wrote", "passes_on_behind_a_barrier"),
    *("passes_on_in_a_warp", "copies_and_waits", "multiplies"),
]

WRONG = {
    "reads_beyond": r"thread 63, faults.cu:\d+: read of 4 bytes of global memory at byte 256 of x, which has 256",
    "reads_before": r"thread 0, .*at byte -4 of x",
    "writes_beyond": r"write of 4 bytes of global memory at byte 256 of y",
    "reads_misaligned": r"global memory at an address that is no multiple of that",
    "writes_an_input": r"write to x, an input",
    "writes_one_place_twice": r"thread 1, .*race: write of y at byte 0, which thread 0 of block 0 writes",
    "reads_what_it_writes": r"race: read of y at byte 0, which thread 0 of block 0 writes in the same launch",
    "writes_what_another_block_writes": r"block \(1, 0, 0\), .*race: write of y .*, which thread 0 of block 0 writes",
    "reads_what_an_earlier_block_writes": r"block \(1, 0, 0\), .*race: read of y .*, which thread 0 of block 0 writes",
    "reads_what_a_later_block_writes": r"block \(1, 0, 0\), .*race: write of y .*, which thread 0 of block 0 reads",
    "reads_what_nobody_wrote": r"read of y at byte 0, which nobody has written",
    "passes_on_without_a_barrier": r"nobody has written|race: read",
    "passes_on_in_a_warp_unordered": r"race: read of shared memory at byte 0, which thread 0 wrote",
    "passes_on_between_warps_by_a_barrier_of_the_warp": r"nobody has written|race: read",
    "writes_what_others_still_read": r"race: (read|write) of shared memory .*, without a barrier between them",
    "writes_a_word_by_two_threads": r"race: write of shared memory at byte 0, which thread 0 wrote",
    "reads_unwritten": r"thread 5, .*read of shared memory at byte 20, which nobody has written",
    "writes_beyond_shared": r"of which the block has 4096",
    "copies_without_waiting": r"where the cp.async of thread \d+ is under way: it was not waited for",
    "waits_for_too_few": r"where the cp.async of thread \d+ is under way: it was not waited for",
    "waits_behind_the_barrier": r"race: read|it was not waited for",
    "copies_over_what_is_read": r"race: write of shared memory",
    "ends_while_copying": r"nobody waited for it",
    "multiplies_by_half_a_warp": r"wait for others that do not come: from thread 0 on at mma",
    "multiplies_in_two_branches": r"mma by a part of the warp: lane \d+ is at mma",
    "meets_by_half_the_block": r"from thread 0 on at __syncthreads at faults.cu:\d+; from thread 32 on at the end",
    "meets_at_two_barriers": r"__syncthreads by a part of the block",
    "loads_a_matrix_unordered": r"race: read",
}


@pytest.mark.parametrize("kernel", RIGHT)
def test_what_is_right_passes(emulator: Emulator, kernel: str) -> None:
    emulator.fault(kernel)


@pytest.mark.parametrize("kernel", WRONG)
def test_what_is_wrong_is_named(emulator: Emulator, kernel: str) -> None:
    with pytest.raises(KernelError, match=WRONG[kernel]):
        emulator.fault(kernel)
    emulator.fault("copies")  # and the next launch is none the worse
