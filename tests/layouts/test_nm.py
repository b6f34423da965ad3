"""n:m: the law, the rule, the order of fragments, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.sparse._semi_structured_conversions as conversions
from damaged import changed, with_entry
from hypothesis import given, strategies as st
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import WEIGHT_DTYPES, PackedWeight, parse

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, sk.NM]:
    m = draw(st.integers(2, 32))
    pattern = sk.NM(draw(st.integers(1, m - 1)), m, draw(st.sampled_from([1, 1, 4, 8, 16, 32])))
    shape = (draw(st.integers(pattern.rows, 70)), draw(st.integers(m, 150)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape).to(draw(st.sampled_from(WEIGHT_DTYPES))), pattern


def counts(mask: Tensor, pattern: sk.NM) -> Tensor:
    """Kept inputs of each group, for each set of rows that share them."""
    vectors = pattern.group_sums(mask.float())
    size = min(pattern.rows, len(mask))
    assert (vectors[: len(mask) // size] % size == 0).all(), "a vector is kept in part"
    kept = torch.nn.functional.pad((vectors > 0).int(), (0, -mask.shape[1] % pattern.m))
    return kept.view(len(kept), -1, pattern.m).sum(2)


@given(cases())
def test_the_law(case: tuple[Tensor, sk.NM]) -> None:
    weight, pattern = case
    mask = sk.make_mask(weight, pattern)
    packed = sk.pack(weight, pattern, mask)
    packed.verify()
    bits = BITS[weight.element_size()]
    assert torch.equal(packed.to_dense().view(bits), torch.where(mask, weight, 0).view(bits))
    assert packed.density == pytest.approx(mask.float().mean().item())
    assert parse(pattern.spec) == pattern
    assert torch.equal(pattern.gather(packed.to_dense(), packed.parts), packed.values)
    assert all(t.stride() == torch.empty(t.shape).stride() for t in packed.tensors)


@given(cases())
def test_masks_keep_the_best_n_of_every_m(case: tuple[Tensor, sk.NM]) -> None:
    weight, pattern = case
    mask = sk.make_mask(weight, pattern)
    rest = weight.shape[1] % pattern.m
    full = counts(mask, pattern)
    assert (full[:, : weight.shape[1] // pattern.m] == pattern.n).all()
    if rest:
        assert (full[:, -1] == min(pattern.n, rest)).all()
    if pattern.rows == 1:
        group = weight[0, : pattern.m].double().abs()
        assert group[mask[0, : pattern.m]].min() >= group[~mask[0, : pattern.m]].max()


@given(cases(), st.floats(0, 1))
def test_fewer_than_n_may_be_kept(case: tuple[Tensor, sk.NM], share: float) -> None:
    weight, pattern = case
    mask = sk.make_mask(weight, pattern) & (torch.rand(weight.shape) < share)
    packed = sk.pack(weight, pattern, mask)
    packed.verify()
    assert torch.equal(packed.to_dense(), torch.where(mask, weight, 0))


def test_the_image_of_2_4_in_figures() -> None:
    """Row 0 keeps inputs 1 and 3 of group 0, row 8 inputs 0 and 2: lane 0's first four values."""
    weight = torch.zeros(16, 32)
    weight[0, 1], weight[0, 3], weight[8, 0], weight[8, 2] = 1, 2, 3, 4
    weight[0, 4 * 5 + 2], weight[0, 4 * 5 + 3] = 5, 6  # group 5 = q + 4 half with q = 1, half = 1
    parts = sk.pack(weight, sk.NM(2, 4)).parts
    assert parts["values"].shape == (1, 1, 32, 8)
    assert parts["values"][0, 0, 0].tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert parts["values"][0, 0, 1].tolist() == [0, 0, 0, 0, 5, 6, 0, 0]
    words = parts["positions"].view(torch.int32).view(8, 2)
    assert words[0, 0] & 0xF == 1 | 3 << 2 and words[0, 0] >> 16 & 0xF == 0 | 2 << 2
    assert words[0, 1] >> 4 & 0xF == 2 | 3 << 2


def test_positions_of_2_4_equal_those_of_torch() -> None:
    """torch's converter for CUTLASS, its own reordering of the metadata undone, has the same nibbles."""
    rows, inputs = 64, 128
    weight = torch.randn(rows, inputs).bfloat16()
    weight = torch.where(sk.make_mask(weight, sk.NM(2, 4)), weight, 0)
    values, reordered = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    places = conversions._calculate_meta_reordering_scatter_offsets(rows, inputs // 16, torch.int16, weight.device)
    theirs = reordered.flatten().gather(0, places).view(rows, inputs // 16)  # 4 groups of a row in each
    parts = sk.pack(weight, sk.NM(2, 4)).parts
    # [row tile, group tile, g, half, pair] of 16 bits -> [row, group / 4]
    ours = parts["positions"].view(torch.int16).permute(0, 4, 2, 1, 3).reshape(rows, inputs // 16)
    assert torch.equal(ours, theirs)
    fragments = parts["values"].view(rows // 16, inputs // 32, 8, 4, 2, 2, 2)
    assert torch.equal(fragments.permute(0, 5, 2, 1, 4, 3, 6).reshape(rows, inputs // 2), values)


@pytest.mark.parametrize("rows", [1, 4])
def test_memory_of_2_4(rows: int) -> None:
    weight = torch.randn(512, 1024)
    packed = sk.pack(weight, sk.NM(2, 4, rows), sk.make_mask(weight, sk.NM(2, 4, rows)))
    index = {1: 1 / 16, 4: 2 / 16}[rows]  # bytes of an index for each byte of values
    assert packed.nbytes <= weight.nbytes / 2 * (1 + index) + 4096


@pytest.mark.parametrize(
    "arguments", [(0, 4), (4, 4), (5, 4), (2, 33), (-1, 4), (2, 4, 2), (2, 4, 64), (2.0, 4), ("2", 4), (True, 4)]
)
def test_patterns_that_are_none(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"NM\(n, m, rows\) takes integers 1 <= n < m <= 32 and rows of 1, 4, 8"):
        sk.NM(*arguments)  # type: ignore[arg-type]


def test_masks_that_break_the_rule() -> None:
    weight, mask = torch.randn(32, 40), torch.zeros(32, 40, dtype=torch.bool)
    mask[5, 8:11] = True
    with pytest.raises(
        ValueError, match=r"mask: 2:4 keeps at most 2 of 4 .* row 5 keeps 3 of inputs 8 to 11 \(group 2\)"
    ):
        sk.pack(weight, sk.NM(2, 4), mask)
    mask[5, 10] = False
    mask[7, 11] = True  # alone each row is within the rule
    with pytest.raises(ValueError, match=r"the 4 rows from 4 on keep 3 of inputs 8 to 11"):
        sk.pack(weight, sk.NM(2, 4, rows=4), mask)
    with pytest.raises(ValueError, match=r"inputs 36 to 37 \(group 9\)"):
        sk.pack(torch.randn(3, 38), sk.NM(1, 4), torch.ones(3, 38, dtype=torch.bool) & (torch.arange(38) > 35))


def test_a_sparsity_that_the_pattern_does_not_imply() -> None:
    weight = torch.randn(16, 16)
    assert torch.equal(sk.make_mask(weight, sk.NM(2, 4), 0.5), sk.make_mask(weight, sk.NM(2, 4)))
    with pytest.raises(ValueError, match=r"sparsity: 2:4 implies 0\.5, got 0\.75; leave it out"):
        sk.make_mask(weight, sk.NM(2, 4), 0.75)


@pytest.mark.parametrize("pattern", [sk.NM(2, 16), sk.NM(2, 4, 32)], ids=lambda g: g.label)
def test_a_pattern_larger_than_the_weight(pattern: sk.NM) -> None:
    with pytest.raises(ValueError, match=r"more than the weight \[16, 10\] has"):
        sk.pack(torch.randn(16, 10), pattern)


@given(place=st.integers(0, 255), value=st.integers(0, 255), pattern=st.sampled_from([(2, 4), (3, 7), (2, 17)]))
def test_any_one_byte_of_the_positions_changed_is_refused_or_legal(
    place: int, value: int, pattern: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(19, 40)
    packed = sk.pack(weight, sk.NM(*pattern), sk.make_mask(weight, sk.NM(*pattern)))
    positions = packed.parts["positions"]
    mutant = changed(packed, positions=with_entry(positions, place % positions.numel(), value))
    try:
        mutant.verify("layer")
    except ValueError as error:
        assert str(error).startswith("layer.")
    else:
        dense = mutant.to_dense()
        assert torch.equal(sk.pack(dense, packed.granularity, dense != 0).to_dense(), dense)


def test_malformed_parts_are_refused() -> None:
    weight = torch.randn(19, 40)
    packed = sk.pack(weight, sk.NM(2, 4), sk.make_mask(weight, sk.NM(2, 4)))
    values, positions = packed.parts["values"], packed.parts["positions"]
    for parts, message in (
        ({"values": values[:1]}, r"layer\.values: expected shape \[2, 2, 32, 8\], got \[1, 2, 32, 8\]"),
        ({"values": values.flatten()}, r"layer\.values: expected shape"),
        ({"positions": positions[..., :3].contiguous()}, r"layer\.positions: expected torch\.uint8 of shape"),
        ({"positions": positions.int()}, r"layer\.positions: expected torch\.uint8"),
        ({"positions": with_entry(positions, 0, 0)}, r"layer\.positions: expected ascending numbers"),
        ({"values": torch.ones_like(values)}, r"layer\.values: non-zero padding below row 19"),
    ):
        with pytest.raises(ValueError, match=message):
            changed(packed, **parts).verify("layer")
    wide = sk.pack(weight[:16, :10].contiguous(), sk.NM(2, 4), sk.make_mask(weight[:16, :10].contiguous(), sk.NM(2, 4)))
    with pytest.raises(ValueError, match=r"layer\.values: non-zero padding beyond column 10"):
        changed(wide, values=torch.ones_like(wide.parts["values"])).verify("layer")
    odd = sk.pack(weight, sk.NM(2, 5), sk.make_mask(weight, sk.NM(2, 5)))
    with pytest.raises(ValueError, match=r"layer\.positions: expected numbers in \[0, 5\), got 15"):
        changed(odd, positions=with_entry(odd.parts["positions"], 0, 0xFE)).verify("layer")


def test_shared_rows_keep_the_rule_when_loaded() -> None:
    weight = torch.randn(32, 40)
    block = sk.pack(weight, sk.Block(16, 1), torch.ones(32, 40, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"layer\.columns: 2:4x16 .* from 0 on keep 4 of inputs 0 to 3"):
        PackedWeight.from_tensors(sk.NM(2, 4, 16), (32, 40), block.tensors, "layer")


def test_a_file_may_claim_any_shape() -> None:
    """What is checked goes by what is stored."""
    parts = [torch.zeros(0, 1, 16), torch.zeros(0, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)]
    PackedWeight.from_tensors(sk.NM(2, 4, 16), (16, 2**36), parts, "layer")


def test_training_may_fill_places_that_the_mask_left_free() -> None:
    layer = sk.SparseLinear.from_dense(torch.nn.Linear(16, 16), sk.NM(2, 4), mask=torch.zeros(16, 16, dtype=torch.bool))
    assert layer.packed.density == 0.5
    layer.values.requires_grad_()
    layer(torch.randn(4, 16)).square().sum().backward()
    with torch.no_grad():
        layer.values -= 0.1 * layer.values.grad
    layer.packed.verify()
    assert (layer.to_dense().weight != 0).float().mean() == 0.5
