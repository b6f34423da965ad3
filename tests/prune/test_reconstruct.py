"""The algebra of calibrated pruning against float64 least squares."""

import pytest
import torch

import sparsekern as sk
from sparsekern.prune import dampen, group_scores, reconstruct

GRANULARITIES = [
    sk.Unstructured(),
    sk.Block(1, 1),
    sk.Block(4, 1),
    sk.Block(3, 2),
    sk.Block(8, 8),
    sk.Block(5, 7),
    sk.Block(1, 4),
    sk.Channel(),
]


def problem(n=24, k=20, tokens=200, seed=0):
    """Correlated inputs [tokens, k] and a weight [n, k], float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, k, generator=generator, dtype=torch.float64) @ mix + 0.5
    return x, torch.randn(n, k, generator=generator, dtype=torch.float64)


def output_error(weight, pruned, gram):
    """Squared error of the outputs as a share of their energy."""
    change = pruned - weight
    return float(((change @ gram) * change).sum() / ((weight @ gram) * weight).sum())


def prune(x, weight, granularity, sparsity):
    gram = x.T @ x
    hessian = dampen(gram)
    mask = granularity.mask(group_scores(weight, hessian, torch.linalg.inv(hessian), granularity), sparsity)
    return reconstruct(weight, hessian, mask), mask, gram


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8])
def test_update_is_the_least_squares_solution(granularity, sparsity):
    x, weight = problem()
    mask = sk.make_mask(weight, granularity, sparsity)
    found = reconstruct(weight, x.T @ x, mask)
    assert found.dtype == torch.float64 and not found[~mask].any()
    for row, kept, target in zip(found, mask, weight, strict=True):
        best = torch.linalg.lstsq(x[:, kept], (x @ target)[:, None]).solution[:, 0]
        torch.testing.assert_close(row[kept], best, rtol=1e-8, atol=1e-8)


def test_update_agrees_with_numpy_on_a_random_mask():
    numpy = pytest.importorskip("numpy")
    x, weight = problem(seed=1)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > 0.4
    found = reconstruct(weight, x.T @ x, mask)
    for row, kept, target in zip(found, mask, weight, strict=True):
        best = numpy.linalg.lstsq(x[:, kept].numpy(), (x @ target).numpy(), rcond=None)[0]
        assert numpy.allclose(row[kept].numpy(), best, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close(granularity, dtype):
    x, weight = problem()
    weight = weight.to(dtype)
    mask = sk.make_mask(weight, granularity, 0.5)
    hessian = dampen((x.T @ x).float())
    found = reconstruct(weight, hessian, mask)
    assert found.dtype == dtype and not found[~mask].any()
    exact = reconstruct(weight.double(), hessian.double(), mask)
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    assert (found - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.label)
@pytest.mark.parametrize("seed", range(3))
def test_update_never_raises_the_error_on_its_data(granularity, seed):
    x, weight = problem(seed=seed)
    for sparsity in (0.25, 0.5, 0.9):
        updated, mask, gram = prune(x, weight, granularity, sparsity)
        plain = output_error(weight, weight * mask, gram)
        assert output_error(weight, updated, gram) <= plain * (1 + 1e-9)


def test_update_of_dependent_inputs_is_free():
    # Input 1 repeats input 0, so its weights can move over without any loss.
    x, weight = problem()
    x[:, 1] = x[:, 0]
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, 1] = False
    gram = x.T @ x
    assert output_error(weight, weight * mask, gram) > 1e-3
    barely_damped = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram))
    assert output_error(weight, reconstruct(weight, barely_damped, mask), gram) < 1e-9


def test_nothing_kept_and_everything_kept():
    x, weight = problem()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[3] = True
    found = reconstruct(weight, dampen(x.T @ x), mask)
    assert torch.equal(found, weight * mask)


@pytest.mark.parametrize("granularity", [sk.Block(4, 1), sk.Block(4, 5), sk.Block(4, 6)], ids=lambda g: g.label)
def test_score_lies_between_the_two_joint_costs(granularity):
    """Dropping one group: the error with no other weight changed, and with all others updated."""
    x, weight = problem()
    gram = x.T @ x
    scores = granularity.group_sums(group_scores(weight, gram, torch.linalg.inv(gram), granularity))
    energy = float(((weight @ gram) * weight).sum())
    for row in range(scores.shape[0]):
        for column in range(scores.shape[1]):
            mask = torch.ones_like(weight, dtype=torch.bool)
            mask[4 * row : 4 * row + 4, column * granularity.cols : (column + 1) * granularity.cols] = False
            alone = output_error(weight, weight * mask, gram) * energy
            helped = output_error(weight, reconstruct(weight, gram, mask), gram) * energy
            assert scores[row, column] == pytest.approx((alone * helped) ** 0.5, rel=1e-6)


def test_channel_score_is_the_energy_of_its_output():
    x, weight = problem()
    gram = x.T @ x
    scores = sk.Channel().group_sums(group_scores(weight, gram, torch.linalg.inv(gram), sk.Channel()))
    torch.testing.assert_close(scores, (x @ weight.T).square().sum(0))


def test_scores_of_zero_weights_are_zero():
    x, weight = problem()
    weight[:, 2] = 0
    hessian = dampen(x.T @ x)
    scores = group_scores(weight, hessian, torch.linalg.inv(hessian), sk.Block(4, 1))
    assert scores.isfinite().all() and not scores[:, 2].any()


def test_inputs_that_are_always_zero():
    x, weight = problem()
    x[:, :5] = 0
    updated, mask, _ = prune(x, weight, sk.Block(4, 1), 0.5)
    assert updated.isfinite().all()
    assert not mask[:, :5].any(), "weights that nothing reads go first"
    assert torch.equal(dampen(torch.zeros(3, 3)), torch.eye(3))


@pytest.mark.parametrize("granularity", [sk.Unstructured(), sk.Block(4, 1), sk.Block(4, 4)], ids=lambda g: g.label)
def test_calibrated_masks_beat_magnitude(granularity):
    x, weight = problem(n=64, k=64, tokens=1000)
    x *= torch.logspace(-1, 1, 64, dtype=torch.float64)  # inputs of very different size
    updated, _, gram = prune(x, weight, granularity, 0.5)
    magnitude = weight * sk.make_mask(weight, granularity, 0.5)
    assert output_error(weight, updated, gram) < 0.5 * output_error(weight, magnitude, gram)
