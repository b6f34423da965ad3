"""A packed weight whose inputs come in another order stores the same places, and its granularity stays if it can."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import Granularity, PackedWeight, permute_inputs
from sparsekern.layouts.permute import stored_places


def packed_of(granularity: Granularity, shape: tuple[int, int] = (16, 24)) -> PackedWeight:
    weight = torch.randn(shape)
    return sk.pack(weight, granularity, sk.make_mask(weight, granularity, granularity.implied_sparsity or 0.5))


def between_pixels(channels: int, pixels: int) -> Tensor:
    """The order that brings features of ``[channels, pixels]`` to ``[pixels, channels]``."""
    return torch.arange(channels * pixels).view(channels, pixels).T.flatten()


@given(st.data())
def test_it_is_the_matrix_with_its_columns_moved(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(2, 30)))
    rows, columns = data.draw(st.integers(1, shape[0])), data.draw(st.integers(1, shape[1]))
    m, shared = data.draw(st.integers(2, shape[1])), data.draw(st.sampled_from([r for r in (1, 4) if r <= shape[0]]))
    choices = [
        sk.Unstructured(),
        sk.Channel(),
        sk.Block(rows, columns),
        sk.NM(data.draw(st.integers(1, m - 1)), m, shared),
    ]
    granularity = data.draw(st.sampled_from(choices))
    order = torch.tensor(data.draw(st.permutations(range(shape[1]))))
    packed = packed_of(granularity, shape)
    before = {name: tensor.clone() for name, tensor in packed.parts.items()}
    moved = permute_inputs(packed, order)
    moved.verify()
    assert torch.equal(moved.to_matrix(), packed.to_matrix()[:, order])
    assert torch.equal(stored_places(moved), stored_places(packed)[:, order])
    assert moved.density == packed.density and moved.kernel is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in packed.parts.items())
    back = permute_inputs(moved, order.argsort())
    assert torch.equal(back.to_matrix(), packed.to_matrix())


@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Block(3, 1), sk.Unstructured(), sk.Channel()], ids=str)
def test_groups_of_one_input_always_stay(granularity: Granularity) -> None:
    moved = permute_inputs(packed_of(granularity), torch.randperm(24))
    assert moved.granularity == granularity


@pytest.mark.parametrize(
    ("granularity", "finer"),
    [
        (sk.Block(4, 4), sk.Block(4, 1)),
        (sk.Block(16, 16), sk.Block(16, 1)),
        (sk.NM(2, 4, 8), sk.Block(8, 1)),
        (sk.NM(2, 4), sk.Unstructured()),
    ],
    ids=str,
)
def test_groups_that_are_torn_apart_become_finer(granularity: Granularity, finer: Granularity) -> None:
    packed = packed_of(granularity)
    assert permute_inputs(packed, between_pixels(4, 6)).granularity == finer
    assert permute_inputs(packed, torch.arange(24)).granularity == granularity


@pytest.mark.parametrize("granularity", [sk.Block(4, 4), sk.NM(2, 4, 8), sk.NM(2, 4)], ids=str)
def test_groups_whose_inputs_stay_neighbours_stay(granularity: Granularity) -> None:
    packed = packed_of(granularity)
    whole_groups = torch.arange(24).view(6, 4).flip(0).flatten()
    moved = permute_inputs(packed, whole_groups, kernel=(3, 2))
    assert moved.granularity == granularity and moved.dense_shape == (16, 4, 3, 2)


def test_the_widest_part_of_a_block_that_stays_whole_is_kept() -> None:
    packed = packed_of(sk.Block(4, 8))
    pairs = torch.tensor([[2 * i, 2 * i + 1] for i in torch.randperm(12).tolist()]).flatten()
    assert permute_inputs(packed, pairs).granularity == sk.Block(4, 2)


def test_places_stored_as_zero_are_kept() -> None:
    weight = torch.zeros(4, 8)
    weight[0, 0] = 1
    for granularity in (sk.Block(4, 4), sk.NM(2, 4), sk.Unstructured()):
        packed = sk.pack(weight, granularity, sk.make_mask(torch.rand(4, 8), granularity, 0.5))
        moved = permute_inputs(packed, between_pixels(2, 4))
        assert moved.density == packed.density == 0.5


def test_what_is_refused() -> None:
    packed = packed_of(sk.Block(4, 1))
    packed.values[0] = float("nan")
    with pytest.raises(ValueError, match=r"^fc6: the packed values hold NaN or infinity"):
        permute_inputs(packed, torch.arange(24), what="fc6")
    meta = {name: tensor.to("meta") for name, tensor in packed.parts.items()}
    with pytest.raises(ValueError, match=r"^weight: is on the meta device, without values; load the weight first"):
        permute_inputs(PackedWeight(packed.granularity, packed.shape, meta), torch.arange(24))
