"""Timing calls side by side, and a packed layer against its dense one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.plan import Sample, interleave, measure, time_linear


class Clock:
    """A clock that only moves when a function is called that takes time on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def takes(self, *seconds: float) -> Callable[[], None]:
        """A function that takes these times in turn."""
        calls = iter(range(1_000_000))

        def function() -> None:
            self.now += seconds[next(calls) % len(seconds)]

        return function


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_each_round_starts_with_another_function() -> None:
    order: list[str] = []
    rounds: list[int] = []
    functions = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = interleave(functions, 6, progress=lambda: rounds.append(len(order)))
    assert "".join(order) == "abcabc" + "abc" + "bca" + "cab" + "abc" + "bca" + "cab"
    assert all(sample.rounds == 6 for sample in found.values())
    assert rounds == [9, 12, 15, 18, 21, 24]
    order.clear()
    interleave({name: functions[name] for name in "ab"}, 4)
    assert "".join(order[4:]) == "ab" + "ba" + "ab" + "ba", "neither of two always goes first"


def test_times_are_those_of_each_function(clock: Clock) -> None:
    found = interleave({"a": clock.takes(1.0), "b": clock.takes(3.0)}, 5)
    assert found == {"a": Sample((1.0,) * 5), "b": Sample((3.0,) * 5)}


@pytest.mark.parametrize(
    ("seconds", "rounds"), [(0.001, 100), (0.01, 30), (0.1, 20), (1.0, 5)], ids=["short", "usual", "long", "very long"]
)
def test_how_many_rounds(seconds: float, rounds: int, clock: Clock) -> None:
    found = interleave({"a": clock.takes(seconds)}, 30, shortest=0.0995, longest=1.95)
    assert found["a"].rounds == rounds


def test_functions_run_without_gradients() -> None:
    modes: list[bool] = []
    interleave({"a": lambda: modes.append(torch.is_inference_mode_enabled())}, 1)
    assert modes == [True] * 3


def test_a_sample_in_numbers() -> None:
    sample = Sample((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (sample.median, sample.quartiles, sample.spread, sample.rounds) == (3.0, (2.0, 4.0), 2.0, 5)
    assert sample.record() == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 5}
    assert Sample((2.0,)).quartiles == (2.0, 2.0)


def test_a_ratio_is_taken_within_rounds() -> None:
    dense, sparse = Sample((2.0, 2.0, 20.0, 20.0)), Sample((1.0, 1.0, 10.0, 10.0))
    assert dense.over(sparse) == Sample((2.0,) * 4)


def layers(bias: bool = True) -> tuple[nn.Linear, sk.SparseLinear]:
    dense = nn.Linear(64, 32, bias)
    return dense, sk.SparseLinear.from_dense(dense, sk.Block(16, 1), 0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_timing_a_layer(bias: bool) -> None:
    dense, sparse = layers(bias)
    before = torch.get_rng_state()
    timing = time_linear(dense, sparse, tokens=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert timing.rounds >= measure.LEAST_ROUNDS and timing.spread >= 0
    assert timing.sparse > 0 and timing.dense > 0 and timing.speedup > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_within_their_rounding(dtype: torch.dtype) -> None:
    dense = nn.Linear(300, 32, dtype=dtype)
    time_linear(dense, sk.SparseLinear.from_dense(dense, sk.Block(16, 1), 0.5), tokens=3)


@pytest.mark.parametrize("value", [0.0, 6e4])
def test_outputs_that_are_zero_or_overflow_are_not_refused(value: float) -> None:
    dense = nn.Linear(16, 16, dtype=torch.float16)
    nn.init.constant_(dense.weight, value)
    nn.init.zeros_(dense.bias)
    time_linear(dense, sk.SparseLinear.from_dense(dense, sk.Block(16, 1), 0.0), tokens=3)


def test_what_slows_whole_rounds_down_leaves_the_speed_up_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rounds on a machine that is ten times as slow: a ratio of medians would be anything."""
    dense, sparse = layers()
    slow, fast = clock.takes(*[0.02] * 16, *[0.2] * 16), clock.takes(*[0.01] * 16, *[0.1] * 16)
    monkeypatch.setattr(dense, "forward", lambda x: slow())
    monkeypatch.setattr(measure, "_check", lambda *args: None)
    monkeypatch.setattr(sparse, "forward", lambda x: fast())
    timing = time_linear(dense, sparse, tokens=4)
    assert timing.speedup == pytest.approx(2) and timing.spread == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("fault", [lambda y: -y, lambda y: y * 1.01, lambda y: y * math.nan])
def test_wrong_outputs_are_noticed_before_anything_is_timed(
    fault: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, sparse = layers()
    sparse.name, right = "encoder.query", sparse.forward
    monkeypatch.setattr(sparse, "forward", lambda x: fault(right(x)))
    monkeypatch.setattr(measure, "interleave", lambda *args, **options: pytest.fail("timed"))
    with pytest.raises(RuntimeError, match=r"encoder.query: expected the outputs of its dense weight .* at 4 tokens"):
        time_linear(dense, sparse, tokens=4)


def test_a_fused_activation_is_compared_with_one_behind_the_dense_layer() -> None:
    dense, packed = nn.Linear(64, 32), layers()[1].packed
    sparse = sk.SparseLinear(packed, dense.bias, "relu")
    with pytest.raises(RuntimeError, match="expected the outputs of its dense weight"):
        time_linear(dense, sparse, 4)
    then = nn.ReLU(inplace=True)
    assert time_linear(dense, sparse, 4, then).rounds
    with pytest.raises(RuntimeError, match="expected the outputs of its dense weight"):
        time_linear(dense, layers()[1], 4, then)
