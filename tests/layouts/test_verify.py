"""``verify`` refuses every packed weight with which a kernel could go astray, and names the fault."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from damaged import changed, with_entry
from hypothesis import given, strategies as st
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import Granularity, PackedWeight
from sparsekern.layouts.compressed import decode_columns, encode_columns

SHAPE = (10, 12)
GRANULARITIES = [sk.Block(4, 1), sk.Block(4, 5), sk.Block(1, 1), sk.Unstructured(), sk.Channel()]


def packed_as(granularity: Granularity) -> PackedWeight:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return sk.pack(weight, granularity, sk.make_mask(weight, granularity, 0.4))


def with_column(packed: PackedWeight, place: int, column: int) -> PackedWeight:
    columns = decode_columns(packed.parts["columns"])
    return changed(packed, columns=encode_columns(with_entry(columns, place, column), limit=SHAPE[1]))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
@given(data=st.data())
def test_any_one_index_changed_is_refused_or_still_a_legal_weight(
    granularity: Granularity, data: st.DataObject
) -> None:
    packed = packed_as(granularity)
    name = data.draw(st.sampled_from(granularity.part_names[1:]))
    part = packed.parts[name]
    place = data.draw(st.integers(0, part.numel() - 1))
    info = torch.iinfo(part.dtype)
    value = data.draw(st.integers(info.min, info.max) | st.integers(0, 20))
    mutant = changed(packed, **{name: with_entry(part, place, value)})
    try:
        mutant.verify("layer")
    except ValueError as error:
        assert str(error).startswith("layer.")
    else:
        # Legal means: it unpacks to a weight that packs to the very same indices.
        again = sk.pack(mutant.to_dense(), granularity, mutant.to_dense() != 0)
        assert torch.equal(again.parts[name], mutant.parts[name])


def drop_last(t: Tensor) -> Tensor:
    return t[:-1]


def add_one(t: Tensor) -> Tensor:
    return torch.cat([t, t[-1:]])


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
@pytest.mark.parametrize("change", [drop_last, add_one, lambda t: t.flatten()[None], lambda t: t[:0]],
                         ids=["shorter", "longer", "another rank", "empty"])  # fmt: skip
def test_wrong_lengths_are_refused(granularity: Granularity, change: Callable[[Tensor], Tensor]) -> None:
    packed = packed_as(granularity)
    for name in granularity.part_names:
        with pytest.raises(ValueError, match=r"^enc\.query\.\w+: expected .* got "):
            changed(packed, **{name: change(packed.parts[name]).contiguous()}).verify("enc.query")


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
def test_wrong_dtypes_are_refused(granularity: Granularity) -> None:
    packed = packed_as(granularity)
    values, *indices = granularity.part_names
    for dtype in (torch.int32, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match=rf"layer\.{values}: expected a floating dtype"):
            changed(packed, **{values: packed.values.to(dtype)}).verify("layer")
    for name in indices:
        for dtype in (torch.int64, torch.float32, torch.int8):
            with pytest.raises(ValueError, match=rf"layer\.{name}: expected .* got {dtype}"):
                changed(packed, **{name: packed.parts[name].to(dtype)}).verify("layer")


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_refused(granularity: Granularity, bad: float) -> None:
    packed = packed_as(granularity)
    with pytest.raises(ValueError, match="layer: the packed values hold NaN or infinity"):
        changed(packed, values=with_entry(packed.values, 0, bad)).verify("layer")


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
def test_strides_and_devices_are_checked(granularity: Granularity) -> None:
    packed = packed_as(granularity)
    for name, part in packed.parts.items():
        spread = torch.stack([part, part], dim=-1)[..., 0]
        with pytest.raises(ValueError, match=rf"layer\.{name}: expected a contiguous tensor"):
            changed(packed, **{name: spread}).verify("layer")
    name = granularity.part_names[-1]
    with pytest.raises(ValueError, match=rf"layer\.{name}: expected on cpu like the values, got meta"):
        changed(packed, **{name: packed.parts[name].to("meta")}).verify("layer")


@pytest.mark.parametrize("granularity", [sk.Block(4, 1), sk.Unstructured()], ids=lambda g: g.label)
def test_columns_must_be_in_range_and_ascend(granularity: Granularity) -> None:
    packed = packed_as(granularity)
    columns = decode_columns(packed.parts["columns"])
    for column in (SHAPE[1], 65_535):
        with pytest.raises(ValueError, match=rf"layer\.columns: expected numbers in \[0, 12\), got \d+ to {column}"):
            with_column(packed, -1, column).verify("layer")
    with pytest.raises(ValueError, match=r"layer\.columns: expected ascending numbers within each row"):
        with_column(packed, 1, int(columns[0])).verify("layer")


@pytest.mark.parametrize("granularity", [sk.Block(4, 1), sk.Unstructured()], ids=lambda g: g.label)
def test_offsets_must_rise_from_zero_to_the_number_of_groups(granularity: Granularity) -> None:
    packed = packed_as(granularity)
    offsets, groups = packed.parts["offsets"], len(packed.values)
    for place, value in ((0, 1), (0, -1), (-1, groups - 1), (-1, groups + 1), (-1, -1), (1, groups + 1), (1, -1)):
        with pytest.raises(ValueError, match=r"layer\.offsets: expected to rise from 0 to \d+"):
            changed(packed, offsets=with_entry(offsets, place, value)).verify("layer")


@pytest.mark.parametrize(
    "shape, granularity, padding",
    [((10, 12), sk.Block(4, 1), r"below row 10"), ((12, 10), sk.Block(4, 4), r"beyond column 10")],
)
def test_padding_must_be_zero(shape: tuple[int, int], granularity: sk.Block, padding: str) -> None:
    packed = sk.pack(torch.randn(shape), granularity, torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=rf"layer\.values: non-zero padding {padding}"):
        changed(packed, values=with_entry(packed.values, -1, 1.0)).verify("layer")


def test_assembling_from_tensors_verifies() -> None:
    packed = packed_as(sk.Block(4, 1))
    again = PackedWeight.from_tensors(packed.granularity, packed.shape, packed.tensors)
    assert torch.equal(again.to_dense(), packed.to_dense())
    with pytest.raises(ValueError, match=r"layer: expected the tensors \['values', 'columns', 'offsets'\], got 2"):
        PackedWeight.from_tensors(packed.granularity, packed.shape, packed.tensors[:2], "layer")
    for shape in ((8, 12), (14, 12), (10, 2), (2**40, 12), (10, 0), (-10, 12)):
        with pytest.raises(ValueError, match="layer"):
            PackedWeight.from_tensors(packed.granularity, shape, packed.tensors, "layer")


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
def test_a_weight_that_cannot_be_packed(granularity: Granularity) -> None:
    good = torch.randn(SHAPE)
    for bad, error, text in (
        (good.tolist(), TypeError, "expected a tensor"),
        (good.int(), TypeError, "got torch.int32"),
        (good.to_sparse(), TypeError, "torch.sparse_coo"),
        (good[0], ValueError, "expected two dimensions"),
        (torch.empty(0, 12), ValueError, "shape \\[0, 12\\]|larger"),
        (with_entry(good, 5, float("nan")), ValueError, "NaN"),
        (with_entry(good, 5, float("inf")), ValueError, "infinity"),
    ):
        for use in (lambda w: sk.pack(w, granularity), lambda w: sk.make_mask(w, granularity, 0.5)):
            with pytest.raises(error, match=text):
                use(bad)


def test_a_mask_that_does_not_fit() -> None:
    weight = torch.randn(SHAPE)
    for mask, error in (
        (torch.ones(SHAPE), TypeError),
        ([[True]], TypeError),
        (torch.ones(12, 10, dtype=torch.bool), ValueError),
        (torch.ones(SHAPE, dtype=torch.bool, device="meta"), ValueError),
    ):
        with pytest.raises(error, match="mask: expected"):
            sk.pack(weight, sk.Block(2, 1), mask)


@pytest.mark.parametrize("granularity", [sk.Block(11, 1), sk.Block(1, 13)], ids=lambda g: g.label)
def test_a_block_larger_than_the_weight(granularity: sk.Block) -> None:
    with pytest.raises(ValueError, match=rf"{granularity.label} block is larger than the weight \[10, 12\].*10x12"):
        sk.pack(torch.randn(SHAPE), granularity)


@pytest.mark.parametrize("sides", [(0, 1), (1, 0), (-4, 1), (1.5, 1), ("4", 1), (None, 1), (True, 1)])
def test_a_block_that_is_none(sides: tuple[object, object]) -> None:
    with pytest.raises(ValueError, match="two integers >= 1"):
        sk.Block(*sides)  # type: ignore[arg-type]


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.0, 2, float("nan"), "0.5"])
def test_a_sparsity_outside_its_range(sparsity: object) -> None:
    with pytest.raises(ValueError, match=r"sparsity: expected a share of zeros in \[0, 1\), got"):
        sk.make_mask(torch.randn(SHAPE), sk.Block(2, 1), sparsity)  # type: ignore[arg-type]


def test_any_real_number_is_a_sparsity() -> None:
    numpy, weight = pytest.importorskip("numpy"), torch.randn(SHAPE)
    half = sk.make_mask(weight, sk.Block(2, 1), 0.5)
    for number in (numpy.float32(0.5), numpy.float64(0.5), Fraction(1, 2)):
        assert torch.equal(sk.make_mask(weight, sk.Block(2, 1), number), half)


def test_a_mask_without_sparsity_or_with_an_unknown_criterion() -> None:
    with pytest.raises(ValueError, match="needs a sparsity"):
        sk.make_mask(torch.randn(SHAPE), sk.Block(2, 1))
    with pytest.raises(ValueError, match=r"criterion: expected one of magnitude.*got 'luck'"):
        sk.make_mask(torch.randn(SHAPE), sk.Block(2, 1), 0.5, criterion="luck")
