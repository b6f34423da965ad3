"""The CUDA kernels of gradients, thread by thread, against float64."""

import pytest
import torch
from cases import MANY, Case, block_cases
from emulator import Emulator, block_arrays, columns_of
from products import assert_near

import sparsekern as sk

DEPTHS = {
    "block_grad_input_h128": (128,),
    "block_grad_input_h64": (64, 192),
    "block_grad_input_h32": (32, 96),
    "block_grad_input_h16": (16, 48),
}
# Of a product with the transpose the depth of blocks is what was their height.
INPUT = [
    (kernel, Case(case.inputs, case.outputs, case.tokens, sk.Block(*sides(case)), case.density, case.dtype))
    for kernel, depths in DEPTHS.items()
    for sides in [lambda case: (case.granularity.cols, case.granularity.rows)]
    for case in block_cases(depths, MANY * (4 // len(depths)))
]
SIDES = {"block_grad_values_h64": (64,), "block_grad_values_h32": (32, 96), "block_grad_values_h16": (16, 48, 80)}
VALUES = [
    (kernel, Case(outputs, inputs, tokens, sk.Block(side, depth), density, dtype))
    for kernel, sides in SIDES.items()
    for side in sides
    for i, tokens in enumerate(MANY * (4 // len(sides)) + MANY)
    for depth in [side * (1, 2)[i % 2]]
    for outputs, inputs in [((2 * side, 2 * side + 5, side)[i % 3], (2 * depth, depth, 2 * depth + 3)[i // 3 % 3])]
    for density in [(0.5, 0.9, 0.2)[i % 3]]
    for dtype in [(torch.bfloat16, torch.float16)[i // 2 % 2]]
]


@pytest.mark.parametrize(("kernel", "case"), INPUT, ids=str)
def test_of_inputs(emulator: Emulator, kernel: str, case: Case) -> None:
    packed = case.weight()
    grad = case.numbers(case.tokens, case.outputs)
    y = emulator.blocks(kernel, packed, grad, transposed=True)
    assert_near(y, grad, packed.to_dense().T)


@pytest.mark.parametrize(("kernel", "case"), VALUES, ids=str)
def test_of_values(emulator: Emulator, kernel: str, case: Case) -> None:
    packed = case.weight()
    grad, x = case.numbers(case.tokens, case.outputs), case.numbers(case.tokens, case.inputs)
    values = emulator.grad_values(kernel, packed, grad, x)
    # As a weight, to compare as a product; what lies beyond the weight's sides is dropped by it.
    found = sk.PackedWeight(packed.granularity, packed.shape, packed.parts | {"values": values}).to_dense()
    kept = sk.PackedWeight(
        packed.granularity, packed.shape, packed.parts | {"values": torch.ones_like(values)}
    ).to_dense()
    dense_grad = torch.where(kept != 0, found, torch.nan)
    wanted = grad.double().T @ x.double()
    size = grad.double().abs().T @ x.double().abs()
    error = (dense_grad.double() - wanted).abs()[kept != 0]
    allowed = (0.51 * torch.finfo(case.dtype).eps * wanted.abs() + 2e-6 * size + 1e-7)[kept != 0]
    assert bool((error <= allowed).all())
    padding = sk.pack(torch.ones(packed.shape), packed.granularity, kept != 0).values == 0
    assert not values[padding].any()  # the gradient of what pads a weight is zero


def test_at_least_forty_cases_a_kernel() -> None:
    for kernel in [*DEPTHS, *SIDES]:
        assert len({case for name, case in INPUT + VALUES if name == kernel}) >= 40


@pytest.mark.parametrize(
    ("outputs", "inputs", "density"), [(64, 64, 0.5), (1040, 600, 0.1), (33, 16, 1.0), (96, 520, 0.0)]
)
def test_index_of_the_transpose(emulator: Emulator, outputs: int, inputs: int, density: float) -> None:
    case = Case(outputs, inputs, 1, sk.Block(16, 16), density, torch.bfloat16)
    packed = case.weight()
    parts, sizes = block_arrays(packed)
    wanted = columns_of(parts["columns"].int(), parts["offsets"], sizes["block_columns"])
    found = emulator.columns(packed)
    for name, array in wanted.items():
        assert torch.equal(found[name], array), name
