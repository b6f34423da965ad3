"""Choosing a back end, and measuring what a layer costs."""

import threading

import pytest
import torch

import sparsekern as sk
from sparsekern import _native, plan
from sparsekern.plan import Request, Timing, backends, refusals, select, time_linear, unregister_backend
from sparsekern.plan.measure import MIN_ROUNDS, interleave

needs_native = pytest.mark.skipif(_native.native is None, reason="no native kernels")


def request(granularity: object, dtype: torch.dtype = torch.float32, device: str = "cpu", columns: int = 64) -> Request:
    return Request(granularity, (64, columns), dtype, device)  # type: ignore[arg-type]


@needs_native
@pytest.mark.parametrize("rows", [4, 8, 16, 32, 48, 64])
def test_native_kernels_serve_their_blocks_on_every_isa(rows: int, isa: str) -> None:
    wanted = request(sk.Block(rows, 1))
    assert select(wanted).name == "cpu" and refusals(wanted) == {}
    for tokens in (1, 15, 16, 1000):
        name = select(wanted).kernel_name(wanted, tokens)
        assert name in [record.name for record in sk.kernels()] and name.endswith(isa)


@needs_native
@pytest.mark.parametrize(
    "wanted, reason",
    [
        (request(sk.Block(3, 1)), "no kernel for blocks of 3 rows"),
        (request(sk.Block(17, 4)), "no kernel for blocks of 17 rows"),
        (request(sk.Unstructured()), "no kernel for unstructured"),
        (request(sk.Channel()), "no kernel for channel"),
        (request(sk.Block(16, 1), torch.bfloat16), "no kernel for torch.bfloat16"),
        (request(sk.Block(16, 1), device="meta"), "weight is on meta"),
        (request(sk.Block(16, 1), columns=65_537), "more than 65536 block columns"),
    ],
)
def test_the_reference_serves_the_rest_and_says_why(wanted: Request, reason: str) -> None:
    assert select(wanted).name == "reference"
    assert refusals(wanted) == {"cpu": reason}
    assert select(wanted).kernel_name(wanted, 64) == f"reference_{wanted.granularity.kind}"


def test_without_back_ends_the_error_lists_the_reasons() -> None:
    unregister_backend("reference")
    with pytest.raises(NotImplementedError, match=r"no back end for unstructured torch.float32 on cpu \(cpu: "):
        select(request(sk.Unstructured()))
    unregister_backend("cpu")
    with pytest.raises(NotImplementedError, match="none registered"):
        select(request(sk.Block(16, 1)))


def test_the_kernel_table_is_that_of_the_back_ends() -> None:
    assert sk.kernels() == [record for backend in backends() for record in backend.kernels()]
    assert {record.backend for record in sk.kernels()} <= {backend.name for backend in backends()}
    assert all(record.runs_here for record in sk.kernels() if record.backend == "reference")


@needs_native
def test_the_target_follows_the_isa(isa: str) -> None:
    target = sk.Target.detect()
    assert target.isa == isa and isa in target.isas and target.native and target.cpu and target.cores >= 1


def test_timing_a_layer() -> None:
    weight = torch.randn(256, 256)
    packed = sk.pack(weight, sk.Block(16, 1), sk.make_mask(weight, sk.Block(16, 1), 0.75))
    before = torch.get_rng_state()
    timing = time_linear(packed, tokens=64, bias=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert timing.rounds >= MIN_ROUNDS and timing.spread >= 0
    assert timing.sparse > 0 and timing.dense > 0
    assert timing.speedup == timing.dense / timing.sparse


def test_interleaving_alternates_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    timing = interleave(lambda: calls.append("dense"), lambda: calls.append("sparse"))
    assert set(zip(calls[::2], calls[1::2], strict=True)) == {("dense", "sparse")}
    assert timing.rounds == len(calls) // 2 - 2  # two rounds warm up
    monkeypatch.setattr("sparsekern.plan.measure.MAX_SECONDS", 0.05)
    slow = interleave(lambda: threading.Event().wait(0.06), lambda: None)
    assert slow.rounds == 1 and slow.dense > 0.05 and slow.spread == 0


def test_speed_up_is_dense_over_sparse() -> None:
    assert Timing(dense=3.0, sparse=2.0, spread=0.0, rounds=30).speedup == 1.5


def test_plan_exports_what_it_promises() -> None:
    assert all(hasattr(plan, name) for name in plan.__all__)
