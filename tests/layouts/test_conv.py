"""Weights of convolutions: the law for four dimensions, the order of the matrix, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from damaged import changed
from hypothesis import given, strategies as st
from torch import Tensor

import sparsekern as sk
from sparsekern.layouts import WEIGHT_DTYPES, Granularity, PackedWeight, matrix_of, weight_of

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Granularity, float | None]:
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)))
    rows, columns = shape[0], shape[1] * shape[2] * shape[3]
    choices: list[Granularity] = [sk.Unstructured(), sk.Channel()]
    choices.append(sk.Block(draw(st.integers(1, rows)), draw(st.integers(1, columns))))
    if columns > 1:
        m = draw(st.integers(2, min(columns, 32)))
        rows = draw(st.sampled_from([r for r in (1, 1, 4, 8) if r <= rows]))
        choices.append(sk.NM(draw(st.integers(1, m - 1)), m, rows))
    granularity = draw(st.sampled_from(choices))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(shape).to(draw(st.sampled_from(WEIGHT_DTYPES)))
    if draw(st.booleans()):
        weight = weight.to(memory_format=torch.channels_last)  # the values do not depend on strides
    sparsity = None if granularity.implied_sparsity else draw(st.floats(0, 1, exclude_max=True))
    return weight, granularity, sparsity


@given(cases())
def test_the_law(case: tuple[Tensor, Granularity, float | None]) -> None:
    weight, granularity, sparsity = case
    mask = sk.make_mask(weight, granularity, sparsity)
    assert mask.shape == weight.shape and mask.dtype == torch.bool
    packed = sk.pack(weight, granularity, mask)
    packed.verify()
    dense, bits = packed.to_dense(), BITS[weight.element_size()]
    assert dense.shape == packed.dense_shape == weight.shape and dense.dtype == weight.dtype
    assert dense.stride() == torch.empty(dense.shape).stride()
    assert torch.equal(dense.view(bits), torch.where(mask, weight, 0).contiguous().view(bits))
    assert packed.density == pytest.approx(mask.float().mean().item())
    assert all(t.stride() == torch.empty(t.shape).stride() for t in packed.tensors)


@given(cases())
def test_a_weight_is_its_matrix_in_channels_last_order(case: tuple[Tensor, Granularity, float | None]) -> None:
    weight, granularity, sparsity = case
    matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    mask = sk.make_mask(weight, granularity, sparsity)
    assert torch.equal(matrix_of(mask), sk.make_mask(matrix, granularity, sparsity))
    packed, flat = sk.pack(weight, granularity, mask), sk.pack(matrix, granularity, matrix_of(mask))
    assert packed.shape == flat.shape == matrix.shape and packed.kernel == weight.shape[2:]
    assert all(torch.equal(a, b) for a, b in zip(packed.tensors, flat.tensors, strict=True))
    assert torch.equal(packed.to_matrix(), flat.to_dense())
    assert torch.equal(weight_of(matrix_of(weight), packed.kernel), weight)


def test_the_order_in_figures() -> None:
    weight = torch.zeros(2, 3, 2, 2)
    weight[1, 2, 0, 1] = 5  # the second pixel of the kernel, the third channel
    packed = sk.pack(weight, sk.Unstructured())
    assert packed.shape == (2, 12) and packed.dense_shape == (2, 3, 2, 2)
    assert packed.parts["columns"].tolist() == [[1 * 3 + 2, 0]]


def test_the_zeros_of_a_weight_are_its_mask() -> None:
    weight = torch.randn(8, 4, 3, 3)
    weight[3] = 0
    assert sk.pack(weight, sk.Channel()).density == 7 / 8


@pytest.mark.parametrize("shape", [(8,), (8, 4, 3), (8, 4, 3, 3, 3)], ids=str)
def test_other_numbers_of_dimensions(shape: tuple[int, ...]) -> None:
    for use in (sk.pack, lambda w, g: sk.make_mask(w, g, 0.5)):
        with pytest.raises(ValueError, match=r"expected two dimensions \[out, in\], or four \[out, in, kh, kw\], got"):
            use(torch.randn(shape), sk.Unstructured())


def test_what_does_not_fit() -> None:
    weight = torch.randn(8, 4, 3, 3)
    with pytest.raises(ValueError, match=r"16x1 block is larger than the weight \[8, 36\]"):
        sk.pack(weight, sk.Block(16, 1))
    with pytest.raises(ValueError, match=r"mask: expected shape \[8, 4, 3, 3\]"):
        sk.pack(weight, sk.Block(4, 1), torch.ones(8, 36, dtype=torch.bool))
    for empty in ((0, 4, 3, 3), (8, 0, 3, 3), (8, 4, 0, 3)):
        with pytest.raises(ValueError, match="both sides > 0"):
            sk.pack(torch.randn(empty), sk.Unstructured())


@pytest.mark.parametrize("kernel", [(5, 3), (0, 3), (-1, -3), (6, 7)], ids=str)
def test_a_kernel_that_does_not_divide_the_matrix(kernel: tuple[int, int]) -> None:
    packed = sk.pack(torch.randn(8, 4, 3, 3), sk.Block(4, 1))
    with pytest.raises(ValueError, match=r"^layer: expected a kernel \(kh, kw\) that divides the 36 columns"):
        dataclasses.replace(packed, kernel=kernel).verify("layer")
    with pytest.raises(ValueError, match=r"^layer: expected a kernel"):
        PackedWeight.from_tensors(packed.granularity, packed.shape, packed.tensors, "layer", kernel)
    assert changed(packed).kernel is None, "without one it is a matrix"


def test_a_linear_product_refuses_the_weight_of_a_convolution() -> None:
    packed = sk.pack(torch.randn(8, 4, 3, 3), sk.Block(4, 1))
    for use in (lambda: sk.linear(torch.randn(2, 36), packed), lambda: sk.SparseLinear(packed)):
        with pytest.raises(ValueError, match=r"packed: expected a weight \[out, in\], got that of a convolution"):
            use()
