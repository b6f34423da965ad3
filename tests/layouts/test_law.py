"""The law of the IR: ``unpack(pack(w, mask)) == w * mask`` bit for bit, for every granularity."""

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import WEIGHT_DTYPES, Granularity, parse, registered

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@st.composite
def granularities(draw: st.DrawFn, shape: tuple[int, int]) -> Granularity:
    kind = draw(st.sampled_from(["block", "block", "unstructured", "channel"]))
    if kind == "block":
        return sk.Block(draw(st.integers(1, shape[0])), draw(st.integers(1, shape[1])))
    return sk.Unstructured() if kind == "unstructured" else sk.Channel()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Granularity, float]:
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    dtype = draw(st.sampled_from(WEIGHT_DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(shape, generator=generator).to(dtype)
    if draw(st.booleans()):
        weight = weight.T.contiguous().T  # the values do not depend on strides
    return weight, draw(granularities(shape)), draw(st.floats(0, 1, exclude_max=True))


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = BITS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def in_whole_groups(granularity: Granularity, mask: Tensor) -> bool:
    """Whether a mask keeps or drops each group of the granularity as one."""
    sizes = granularity.group_sums(torch.ones(mask.shape))
    kept = granularity.group_sums(mask.float())
    return bool(((kept == 0) | (kept == sizes)).all())


@given(cases())
def test_unpacking_returns_the_masked_weight(case: tuple[Tensor, Granularity, float]) -> None:
    weight, granularity, sparsity = case
    mask = sk.make_mask(weight, granularity, sparsity)
    packed = sk.pack(weight, granularity, mask)
    packed.verify()
    assert same_bits(packed.to_dense(), torch.where(mask, weight, 0))
    assert packed.density == pytest.approx(mask.float().mean().item())
    assert packed.nbytes == sum(t.nbytes for t in packed.tensors)
    # As fresh tensors have them: collectives refuse what is_contiguous() lets pass for sides of 1.
    assert all(t.stride() == torch.empty(t.shape).stride() for t in packed.tensors)
    assert packed.granularity == granularity and packed.shape == weight.shape and packed.dtype == weight.dtype


@given(cases(), st.integers(0, 2**31))
def test_a_mask_across_groups_is_kept_to_the_weight(case: tuple[Tensor, Granularity, float], seed: int) -> None:
    # Masks come from anywhere: a group with one kept weight is stored whole, with zeros for the rest.
    weight, granularity, sparsity = case
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) >= sparsity
    packed = sk.pack(weight, granularity, mask)
    packed.verify()
    assert same_bits(packed.to_dense(), torch.where(mask, weight, 0))
    assert packed.density >= mask.float().mean().item() - 1e-6


@given(cases())
def test_the_zeros_of_a_weight_are_its_mask(case: tuple[Tensor, Granularity, float]) -> None:
    weight, granularity, sparsity = case
    mask = sk.make_mask(weight, granularity, sparsity) & (weight != 0)
    implicit, explicit = sk.pack(weight * mask, granularity), sk.pack(weight, granularity, mask)
    for name in granularity.part_names:
        assert torch.equal(implicit.parts[name], explicit.parts[name])


@given(cases())
def test_masks_keep_the_best_groups_and_the_share_asked_for(case: tuple[Tensor, Granularity, float]) -> None:
    weight, granularity, sparsity = case
    mask = sk.make_mask(weight, granularity, sparsity)
    assert mask.dtype == torch.bool and mask.shape == weight.shape
    assert in_whole_groups(granularity, mask)
    scores = granularity.group_sums(weight.float().square() if weight.dtype != torch.float64 else weight.square())
    kept = granularity.group_sums(mask.float()) > 0
    assert int(kept.sum()) == max(1, round(kept.numel() * (1 - sparsity)))
    if not kept.all():
        assert scores[kept].min() >= scores[~kept].max()


@given(cases())
def test_gather_reads_what_pack_stores(case: tuple[Tensor, Granularity, float]) -> None:
    # The gradient of the values is gathered in their layout, padding included.
    weight, granularity, sparsity = case
    packed = sk.pack(weight, granularity, sk.make_mask(weight, granularity, sparsity))
    assert torch.equal(granularity.gather(packed.to_dense(), packed.parts), packed.values)


@given(st.data())
def test_spec_reads_back(data: st.DataObject) -> None:
    granularity = data.draw(granularities((10**6, 10**6)))
    assert parse(granularity.spec) == granularity
    assert parse(granularity.spec).spec == granularity.spec
    assert hash(parse(granularity.spec)) == hash(granularity)


@pytest.mark.parametrize(
    "spec",
    ["", "block", "block()", "block(1)", "block(1,2,3)", "block(0,1)", "block(-1,1)", "block(1.5,1)", "block(1, 1)",
     "round(3)", "unstructured(1)", "block(16,1) ", "block(16,1)\n", "Block(16,1)", "block(16,1", "block(x,1)"],
)  # fmt: skip
def test_an_unreadable_spec_is_an_error(spec: str) -> None:
    with pytest.raises(ValueError, match=r"granularity|Block\("):
        parse(spec)


@pytest.mark.parametrize("cls", registered().values())
def test_granularities_are_values(cls: type[Granularity]) -> None:
    granularity = cls(*(1, 2, 4)[: len(dataclasses.fields(cls))])
    for same in (copy.deepcopy(granularity), pickle.loads(pickle.dumps(granularity)), parse(granularity.spec)):
        assert same == granularity and hash(same) == hash(granularity) and same.spec == granularity.spec
    with pytest.raises(AttributeError):
        granularity.rows = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("rows, cols", [(16, 1), (32, 1), (16, 16), (64, 64), (4, 4), (8, 2)])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("shape", [(384, 1536), (768, 3072), (512, 512)])
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_memory_of_coarse_blocks(
    rows: int, cols: int, dtype: torch.dtype, shape: tuple[int, int], sparsity: float
) -> None:
    # The promise: density times the dense bytes, plus 15 percent of that, plus 4 KiB.
    weight = torch.randn(shape).to(dtype)
    granularity = sk.Block(rows, cols)
    packed = sk.pack(weight, granularity, sk.make_mask(weight, granularity, sparsity))
    assert packed.density == pytest.approx(1 - sparsity, abs=0.01)
    assert packed.nbytes <= packed.density * weight.nbytes * 1.15 + 4096


@pytest.mark.parametrize("granularity", [sk.Unstructured(), sk.Block(4, 1), sk.Block(8, 1), sk.Block(2, 2)])
def test_memory_of_fine_groups_is_two_bytes_an_index_more(granularity: Granularity) -> None:
    weight = torch.randn(768, 768)
    packed = sk.pack(weight, granularity, sk.make_mask(weight, granularity, 0.75))
    groups = len(packed.values)
    assert packed.nbytes <= packed.density * weight.nbytes * 1.15 + 2 * groups + 4096


def test_columns_beyond_16_bits() -> None:
    # 65,536 is the last width whose columns fit into 16 bits; both sides of it, at their very ends.
    for width, dtype in ((65_536, torch.uint8), (65_537, torch.int32)):
        weight = torch.zeros(2, width)
        weight[0, 0], weight[0, width - 1], weight[1, 32_768] = 1, 2, 3
        for granularity in (sk.Unstructured(), sk.Block(1, 1)):
            packed = sk.pack(weight, granularity)
            packed.verify()
            assert packed.parts["columns"].dtype == dtype
            assert torch.equal(packed.to_dense(), weight)
            x = torch.randn(3, width)
            torch.testing.assert_close(sk.linear(x, packed), x @ weight.T)


def test_the_density_of_a_weight_without_memory_is_an_error() -> None:
    packed = sk.pack(torch.randn(8, 8), sk.Block(4, 1))
    parts = {name: tensor.to("meta") for name, tensor in packed.parts.items()}
    with pytest.raises(ValueError, match="density: the packed weight is on the meta device"):
        _ = sk.PackedWeight(packed.granularity, packed.shape, parts).density


def test_packing_takes_no_gradient_and_no_memory_of_the_weight() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    for granularity in (sk.Block(8, 8), sk.Unstructured(), sk.Channel()):
        packed = sk.pack(weight, granularity, torch.ones(8, 8, dtype=torch.bool))
        before = packed.to_dense()
        assert not packed.values.requires_grad
        with torch.no_grad():
            weight.add_(1)
        assert torch.equal(packed.to_dense(), before)
