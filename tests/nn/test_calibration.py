"""``sparsify_`` with calibration data that does not reach every layer in every batch, or was collected before."""

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.prune import Calibration

HALF = sk.Sparse(sk.Block(16, 1), 0.5)


class Gated(nn.Module):
    """Query and key read one tensor, the key not in every batch; one layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.unused = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x) + self.key(x) if len(x) > 40 else self.query(x)


@pytest.mark.parametrize("only_if_faster", [True, False])
def test_calibration_with_layers_that_not_every_batch_reaches(only_if_faster: bool) -> None:
    model = Gated()
    config = sk.Sparse(sk.Block(16, 1), 0.5, only_if_faster=only_if_faster)
    report = sk.sparsify_(model, config, calibration=(torch.randn(n, 32) for n in (64, 40, 64)))
    assert [row.sparse for row in report] == [True, True, False]
    assert report["unused"].verdict == "kept dense: calibration never reached it" and type(model.unused) is nn.Linear


def test_calibration_may_be_collected_before() -> None:
    model, batches = Gated(), [torch.randn(64, 32)]
    calibration = Calibration.collect(model, batches)
    twin = Gated()
    twin.load_state_dict(model.state_dict())
    sk.sparsify_(model, HALF, calibration=calibration)
    sk.sparsify_(twin, HALF, calibration=batches)
    assert torch.equal(model.query.weight, twin.query.weight)


@pytest.mark.parametrize("pattern", [sk.NM(2, 4), sk.NM(1, 4, 8)], ids=lambda g: g.label)
def test_n_of_m_is_calibrated_without_a_sparsity(pattern: sk.NM) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16))
    inputs = [torch.randn(32, 24) for _ in range(4)]
    report = sk.sparsify_(model, sk.Sparse(pattern), calibration=inputs)
    assert [row.density for row in report] == [1 - pattern.implied_sparsity] * 2
    for layer in (model[0], model[2]):
        assert layer.granularity == pattern
        layer.packed.verify()
    assert model(inputs[0]).isfinite().all()
