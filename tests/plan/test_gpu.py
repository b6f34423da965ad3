import pytest

import sparsekern as sk
from sparsekern.plan.gpu import GPUS, Gpu, dense_seconds, pays, sparse_seconds


def kept(shape: tuple[int, int], density: float) -> int:
    return round(shape[0] * shape[1] * density)


@pytest.mark.parametrize("capability", [*GPUS, 87, 103, 75])
def test_few_tokens_always_pay(capability: int) -> None:
    assert pays(sk.Block(16, 16), (4096, 4096), kept((4096, 4096), 0.9), 16, capability)


@pytest.mark.parametrize(
    ("side", "density", "expected"),
    [(128, 0.5, True), (128, 0.9, False), (64, 0.25, True), (16, 0.5, False), (16, 0.25, False), (16, 0.1, True)],
)
def test_high_blocks_pay_sooner_than_low_ones(side: int, density: float, expected: bool) -> None:
    shape = (8192, 8192)
    assert pays(sk.Block(side, side), shape, kept(shape, density), 8192, 90) is expected


def test_two_of_four_pays() -> None:
    assert pays(sk.NM(2, 4), (8192, 8192), 8192 * 4096, 4096, 80)


def test_the_bounds_by_hand() -> None:
    """8192^3 with 128 x 128 blocks at a density of 0.5 on sm_80: tensor cores, then issue and L2 of 16 rows."""
    shape, stored, gpu = (8192, 8192), 8192 * 4096, GPUS[80]
    products = 2 * stored * 8192
    assert sparse_seconds(sk.Block(128, 128), shape, stored, 8192, gpu) == pytest.approx(products / 230e12)
    # Nearly every input is in one of the 8 strips of a tile.
    issued = 0.9 * (1 - 0.5**8) * 8192 * 8192 * 2 * 8192
    assert sparse_seconds(sk.Block(16, 16), shape, stored, 8192, gpu) == pytest.approx(issued / 230e12)
    slow = Gpu(dense=250, mma=10_000, l2=4.0, memory=1.5)
    weights, activations = 2 * stored * 64, 2 * (1 - 0.5**8) * 8192 * 64 * 8192
    assert sparse_seconds(sk.Block(16, 16), shape, stored, 8192, slow) == pytest.approx((weights + activations) / 4e12)
    unpack = 2 * (stored + 8192 * 8192) / 1.5e12
    assert dense_seconds(shape, stored, 8192, gpu) == pytest.approx(unpack + 2 * 8192**3 / 250e12)
