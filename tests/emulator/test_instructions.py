"""The emulated instructions against the PTX ISA's own formulas, written here a second time by lanes.

``groupID`` and ``threadID_in_group`` are its words: lane // 4 and lane % 4.
"""

import pytest
import torch
import torch.sparse._semi_structured_conversions as conversions
from emulator import Emulator
from torch import Tensor

import sparsekern as sk

LANES = range(32)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def a_place(lane: int, i: int) -> tuple[int, int]:
    """Row and column of number i of operand A of m16n8k16 (9.7.14.5.8, "matrix fragments for mma.m16n8k16")."""
    group, thread = lane // 4, lane % 4
    row = group if i in (0, 1, 4, 5) else group + 8
    column = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
    return row, column


def b_place(lane: int, i: int) -> tuple[int, int]:
    """Row and column of number i of operand B, of which m16n8k32 has 8 and m16n8k16 has 4."""
    group, thread = lane // 4, lane % 4
    return thread * 2 + (i & 1) + 8 * (i // 2), group


def d_place(lane: int, i: int) -> tuple[int, int]:
    """Row and column of number i of the accumulators."""
    group, thread = lane // 4, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def registers(matrix: Tensor, place, numbers: int) -> Tensor:
    """Words ``[32, 4]`` that hold the matrix as ``place`` says; two numbers a word."""
    held = torch.zeros(32, 8, dtype=matrix.dtype)
    for lane in LANES:
        for i in range(numbers):
            held[lane, i] = matrix[place(lane, i)]
    return held.view(torch.int32)


def matrix_of(d: Tensor) -> Tensor:
    matrix = torch.full((16, 8), float("nan"))
    for lane in LANES:
        for i in range(4):
            matrix[d_place(lane, i)] = d[lane, i]
    return matrix


def integers(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random integers, whose products and sums are exact."""
    return torch.randint(-9, 10, shape).to(dtype)


@pytest.mark.parametrize("name", DTYPES)
def test_mma(emulator: Emulator, name: str) -> None:
    torch.manual_seed(0)
    a, b = integers(16, 16, dtype=DTYPES[name]), integers(16, 8, dtype=DTYPES[name])
    d = emulator.probe(f"mma_{name}", registers(a, a_place, 8), registers(b, b_place, 4))
    assert torch.equal(matrix_of(d), a.float() @ b.float())


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("name", DTYPES)
def test_mma_sp_on_what_pytorch_packs(emulator: Emulator, name: str, selector: int) -> None:
    """Kept numbers and places come from PyTorch's own converter for CUTLASS, and lanes from the PTX ISA."""
    torch.manual_seed(1)
    dtype = DTYPES[name]
    weight = integers(32, 64, dtype=dtype)
    weight *= sk.make_mask(weight.float() + torch.rand(32, 64), sk.NM(2, 4))
    kept, reordered = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    places = places_of(weight, kept, reordered)
    x = integers(64, 8, dtype=dtype)
    for row, k in ((0, 0), (16, 0), (0, 32), (16, 32)):
        a, metadata = torch.zeros(32, 8, dtype=dtype), torch.zeros(32, dtype=torch.int64)
        for lane in LANES:
            group, thread = lane // 4, lane % 4
            for i in range(8):
                # 9.7.14.6.2.2: of the 32 columns a thread has those of its chunk of four and of the chunk 16 on.
                chunk = thread + (4 if i >= 4 else 0)
                a[lane, i] = kept[row + group + (8 if i in (2, 3, 6, 7) else 0), k // 2 + 2 * chunk + (i & 1)]
            if thread // 2 == selector:
                for half in range(2):
                    for chunk in range(4):
                        first, second = places[row + group + 8 * half, k // 4 + thread % 2 * 4 + chunk].tolist()
                        metadata[lane] |= (first | second << 2) << (16 * half + 4 * chunk)
            else:
                metadata[lane] = torch.randint(0, 2**32, ())  # not read
        b = registers(x[k : k + 32], b_place, 8)
        words = torch.where(metadata >= 2**31, metadata - 2**32, metadata).int()
        d = emulator.probe(f"mma_sp_{name}_{selector}", a.view(torch.int32), b, words)
        assert torch.equal(matrix_of(d), weight[row : row + 16, k : k + 32].float() @ x[k : k + 32].float())


def places_of(weight: Tensor, kept: Tensor, reordered: Tensor) -> Tensor:
    """The places ``[rows, groups, 2]`` that PyTorch's metadata says, undone from its order for CUTLASS."""
    rows, columns = weight.shape
    offsets = conversions._calculate_meta_reordering_scatter_offsets(rows, columns // 16, torch.int16, weight.device)
    words = reordered.view(-1).gather(0, offsets).view(rows, columns // 16).int() & 0xFFFF
    fields = torch.stack([words >> 2 * i & 3 for i in range(8)], -1)
    places = fields.view(rows, columns // 4, 2)
    # That these are the places of what it kept:
    restored = torch.zeros(rows, columns // 4, 4).scatter_(2, places.long(), kept.view(rows, -1, 2).float())
    assert torch.equal(restored.view(rows, columns), weight.float())
    return places


@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix(emulator: Emulator, trans: bool) -> None:
    matrices = torch.arange(4 * 64, dtype=torch.int16).view(4, 8, 8)
    words = emulator.probe("ldmatrix_trans" if trans else "ldmatrix", matrices.view(32, 8).view(torch.int32))
    numbers = words.view(torch.int16).view(32, 4, 2)
    for lane in LANES:
        for i in range(4):
            matrix = matrices[i].T if trans else matrices[i]
            row, column = lane // 4, lane % 4 * 2
            assert numbers[lane, i].tolist() == matrix[row, column : column + 2].tolist()


def test_movmatrix(emulator: Emulator) -> None:
    matrix = torch.arange(64, dtype=torch.int16).view(8, 8)
    words = torch.zeros(32, 4, dtype=torch.int32)
    words[:, 0] = matrix.reshape(32, 2).view(torch.int32).flatten()
    moved = emulator.probe("movmatrix", words)[:, 0].contiguous().view(torch.int16).view(8, 8)
    assert torch.equal(moved, matrix.T)


def test_metadata_must_ascend(emulator: Emulator) -> None:
    from emulator import KernelError

    zeros = torch.zeros(32, 4, dtype=torch.int32)
    with pytest.raises(KernelError, match=r"row 0, group 0 does not ascend"):
        emulator.probe("mma_sp_f16_0", zeros, zeros, torch.zeros(32, dtype=torch.int32))
