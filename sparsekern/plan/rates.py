"""What one core of this host can do: the constants of the cost model, measured in about a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._native import native

SECONDS = 0.08
"""For each rate. The best of many short rounds counts, so that a neighbour's work is left out."""

BUFFERS = (32 * 1024, 512 * 1024, 4 * 1024**2, 16 * 1024**2, 64 * 1024**2)
"""Bytes that bandwidths are measured with: in L1, in L2, in a small and in a large L3, in memory."""

LEAST, MOST = 1e-15, 1e20
"""Beyond these, of anything a second and of seconds, a rate is none, and the model's powers might overflow."""


@dataclass(frozen=True)
class Rates:
    """What one core does in a second.

    Attributes:
        multiply_adds: of vectors in registers, by their lanes.
        loads: of vectors and splats out of L1 in a loop that multiplies and adds one of each, by the lanes.
        latency: seconds from one multiply-add to another that needs its result; a quarter is about a cycle.
        bandwidth: bytes read a second, by the size of what is read again and again.
        widened: bfloat16 numbers made into float32.
    """

    multiply_adds: Mapping[int, float]
    loads: Mapping[int, float]
    latency: float
    bandwidth: Mapping[int, float]
    widened: float

    def read(self, size: float) -> float:
        """Bytes a second of reading something of so many bytes again."""
        for measured in sorted(self.bandwidth):
            if size <= measured:
                return self.bandwidth[measured]
        return self.bandwidth[max(self.bandwidth)]

    def record(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""
        return {
            "multiply_adds": {str(lanes): rate for lanes, rate in self.multiply_adds.items()},
            "loads": {str(lanes): rate for lanes, rate in self.loads.items()},
            "latency": self.latency,
            "bandwidth": {str(size): rate for size, rate in self.bandwidth.items()},
            "widened": self.widened,
        }

    @classmethod
    def of_record(cls, record: Any, isa: str) -> Rates:
        """The inverse of :meth:`record`.

        Raises:
            ValueError: it is no such record, or one of an instruction set other than ``isa``.
        """
        try:
            multiply_adds, loads, bandwidth = (
                {int(key): _positive(rate) for key, rate in record[name].items()}
                for name in ("multiply_adds", "loads", "bandwidth")
            )
            lanes = lanes_of(isa)
            if set(multiply_adds) != lanes or set(loads) != lanes or not bandwidth:
                raise ValueError(f"no rates for vectors of {sorted(lanes)} floats")
            return cls(multiply_adds, loads, _positive(record["latency"]), bandwidth, _positive(record["widened"]))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"rates: expected a record of plan.Rates, got another one ({error}); tune again") from None


def _positive(rate: Any) -> float:
    if not LEAST < float(rate) < MOST:
        raise ValueError(f"a rate of {rate}")
    return float(rate)


def lanes_of(isa: str) -> set[int]:
    """Widths of the vectors that kernels have at an instruction set and below."""
    levels = native.isa_supported()
    below = levels[: levels.index(isa) + 1]
    return {line["lanes"] for line in native.kernels() if line["isa"] in below}


def measure_rates() -> Rates:
    """Run the micro-benchmark for the instruction set in use, on the calling thread.

    Raises:
        RuntimeError: there are no native kernels, whose loops it consists of.
    """
    if native is None:
        raise RuntimeError("rates: expected the native kernels, which are not installed; run sparsekern's doctor")
    lanes = sorted(lanes_of(native.isa()))
    return Rates(
        multiply_adds={n: native.multiply_adds_a_second(n, SECONDS) for n in lanes},
        loads={n: native.loads_a_second(n, SECONDS) for n in lanes},
        latency=native.multiply_add_latency(SECONDS),
        bandwidth={size: 1e9 * native.read_bandwidth_gbs(size, SECONDS) for size in BUFFERS},
        widened=native.widened_a_second(SECONDS),
    )
