"""The model that says who multiplies on a GPU."""

from __future__ import annotations

import dataclasses

import pytest

import sparsekern as sk
from sparsekern.plan.gpu import GPUS, Gpu, Product, cuda_seconds, dense_seconds, fastest, triton_seconds

ALL = ("cuda", "triton", "reference")
SQUARE = (8192, 8192)


def product(
    granularity: sk.Granularity, density: float, tokens: int, shape: tuple[int, int] = SQUARE, itemsize: int = 2
) -> Product:
    return Product(granularity, shape, round(shape[0] * shape[1] * density), tokens, itemsize)


@pytest.mark.parametrize("capability", [*GPUS, 87, 103, 75])
@pytest.mark.parametrize("offered", [ALL, ALL[1:]])
def test_few_tokens_are_the_first_ones(capability: int, offered: tuple[str, ...]) -> None:
    assert fastest(product(sk.Block(16, 16), 0.9, 16), capability, offered) == offered[0]


@pytest.mark.parametrize(
    ("side", "density", "capability", "expected"),
    [
        (128, 0.5, 80, "cuda"), (128, 0.5, 120, "cuda"), (128, 0.95, 80, "cuda"),
        # wgmma is faster than mma.sync, and tiles of 256 tokens ask less of the L2 cache.
        (128, 0.5, 90, "triton"), (128, 0.25, 100, "triton"),
        (128, 0.9, 90, "reference"), (16, 0.5, 90, "reference"), (16, 0.25, 90, "reference"),
        # Low blocks share activations in the CUDA kernels alone.
        (16, 0.1, 90, "cuda"), (32, 0.25, 80, "cuda"), (32, 0.1, 90, "cuda"),
    ],
)  # fmt: skip
def test_who_multiplies_many_tokens(side: int, density: float, capability: int, expected: str) -> None:
    assert fastest(product(sk.Block(side, side), density, 8192), capability, ALL) == expected


def test_two_of_four_is_for_the_sparse_tensor_cores() -> None:
    for capability in (80, 86, 89, 120):
        assert fastest(product(sk.NM(2, 4), 0.5, 4096), capability, ALL) == "cuda"
    # Unfolding and multiplying densely in Triton is slower than a dense product where tokens are many.
    assert fastest(product(sk.NM(2, 4), 0.5, 8192), 80, ALL[1:]) == "reference"


def test_float32_is_for_triton() -> None:
    assert fastest(product(sk.Block(64, 64), 0.25, 4096, itemsize=4), 80, ALL[1:]) == "triton"
    assert fastest(product(sk.Block(64, 64), 0.9, 4096, itemsize=4), 80, ALL[1:]) == "reference"


def test_tensor_cores_decide_where_the_l2_cache_does_not() -> None:
    fast = dataclasses.replace(GPUS[90], l2=100.0)
    wanted = product(sk.Block(128, 128), 0.5, 8192)
    assert triton_seconds(wanted, fast) < cuda_seconds(wanted, fast) / 1.1


def test_tiles_are_wide_where_there_are_enough() -> None:
    wide, small = product(sk.Block(128, 128), 0.5, 8192), product(sk.Block(128, 128), 0.5, 512, shape=(4096, 4096))
    narrow = dataclasses.replace(GPUS[90], tma=False)
    assert triton_seconds(wide, GPUS[90]) == pytest.approx(0.75 * triton_seconds(wide, narrow))
    assert triton_seconds(small, GPUS[90]) == triton_seconds(small, narrow)
    low = product(sk.Block(128, 32), 0.5, 8192)
    assert triton_seconds(low, GPUS[90]) == triton_seconds(low, narrow)


def test_the_more_preferred_one_stays_where_the_other_promises_little() -> None:
    wanted, gpu = product(sk.Block(128, 128), 0.98, 8192), GPUS[80]
    assert dense_seconds(wanted, gpu) < cuda_seconds(wanted, gpu) < 1.1 * dense_seconds(wanted, gpu)
    assert fastest(wanted, 80, ALL) == "cuda"


def test_a_back_end_of_others_is_left_alone() -> None:
    assert fastest(product(sk.Block(16, 16), 0.9, 8192), 90, ("mine", *ALL)) == "mine"


def test_the_bounds_by_hand() -> None:
    """8192^3 with 128 x 128 blocks at a density of 0.5 on sm_80: tensor cores, then issue, L2 and shared memory."""
    stored, gpu = 8192 * 4096, GPUS[80]
    high, low = product(sk.Block(128, 128), 0.5, 8192), product(sk.Block(16, 16), 0.5, 8192)
    products = 2 * stored * 8192
    assert cuda_seconds(high, gpu) == pytest.approx(products / 230e12)
    assert triton_seconds(high, gpu) == pytest.approx(products / 210e12)
    # Nearly every input is in one of the 8 strips of a tile.
    issued = 0.9 * (1 - 0.5**8) * 8192 * 8192 * 2 * 8192
    assert cuda_seconds(low, gpu) == pytest.approx(issued / 230e12)
    slow = Gpu(dense=250, mma=10_000, dot=10_000, fma=19, l2=4.0, shared=10_000, memory=1.5)
    weights, activations = 2 * stored * 64, 2 * (1 - 0.5**8) * 8192 * 64 * 8192
    assert cuda_seconds(low, slow) == pytest.approx((weights + activations) / 4e12)
    # Triton's programs of 16 rows load their activations each for itself.
    assert triton_seconds(low, slow) == pytest.approx((weights + 2 * stored / 16 * 8192) / 4e12)
    narrow = Gpu(dense=250, mma=10_000, dot=10_000, fma=19, l2=10_000, shared=1.0, memory=1.5)
    assert triton_seconds(high, narrow) == pytest.approx(2 * stored * 8192 * (1 / 128 + 1 / 128) / 1e12)
    assert cuda_seconds(high, narrow) == pytest.approx(2 * stored * 8192 * (1 / 64 + 1 / 32) / 1e12)
    unpack = 2 * (stored + 8192 * 8192) / 1.5e12
    assert dense_seconds(high, gpu) == pytest.approx(unpack + 2 * 8192**3 / 250e12)
