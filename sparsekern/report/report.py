"""The report of ``sparsify_``: one row a layer, with its verdict and the measurements behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .table import text_table

SCATTER = 0.25
"""Spread of a speed-up, as a share of it, from which other work must have disturbed the measurement."""

IMPLAUSIBLE = 3.0
"""Efficiency (speed-up x density) that no kernel has: dense PyTorch reaches more than a third of the peak."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one Linear or Conv2d layer.

    A layer that stayed dense keeps what was tried on it: granularity, density, kernel and times.

    Attributes:
        layer: fully qualified name.
        shape: ``(out, in)`` of the weight, or ``(out, in / groups, kh, kw)``.
        sparse: whether the layer is sparse now.
        reason: why it stayed dense, or a remark on a sparse layer; may be empty.
        granularity: label of the granularity, such as ``16x1``; None if none was tried.
        density: share of the weight that is stored in that granularity.
        kernel: kernel that runs it.
        calls: how often one pass over the example inputs calls the layer; None if not observed.
        tokens: rows of its activations, or pixels of a convolution's output, summed over those calls; None if not
            observed.
        dense_us: microseconds of those calls of the dense layer, and of its activation if that can be fused, medians,
            in eager PyTorch (to compile each layer would take minutes); None if not measured.
        sparse_us: the same with the packed weight, and the activation fused.
        speedup: dense time over packed time, median of neighbouring runs; above 1 the packed layer is faster.
        spread: interquartile range of that ratio.
        rounds: number of neighbouring runs, the fewest of all sizes at which the layer is called.
        bytes_before: bytes of the weight before.
        bytes_after: bytes of the weight now, indices included.
    """

    layer: str
    shape: tuple[int, ...]
    sparse: bool
    reason: str = ""
    granularity: str | None = None
    density: float | None = None
    kernel: str | None = None
    calls: int | None = None
    tokens: int | None = None
    dense_us: float | None = None
    sparse_us: float | None = None
    speedup: float | None = None
    spread: float | None = None
    rounds: int | None = None
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def pays(self) -> bool:
        """Whether the packed layer was measured and is faster by more than the spread."""
        return self.speedup is not None and self.speedup - (self.spread or 0) > 1

    @property
    def noisy(self) -> bool:
        """Whether the measurement is not to be trusted: it scatters, or is better than arithmetic allows."""
        if self.speedup is None:
            return False
        return (self.spread or 0) > SCATTER * self.speedup or self.speedup * (self.density or 0) > IMPLAUSIBLE

    @property
    def gain(self) -> str:
        """The speed-up in a few words, and what it is worth; empty if not measured."""
        if self.speedup is None:
            return ""
        spread = self.spread or 0
        clear = abs(self.speedup - 1) > spread
        remarks = [] if clear else [f"{times(self.speedup)}, spread {spread:.2f}"]
        remarks += ["noisy: measure again on an idle machine"] if self.noisy else []
        text = times(self.speedup) if clear else "no clear gain"
        return f"{text} ({'; '.join(remarks)})" if remarks else text

    @property
    def verdict(self) -> str:
        """The outcome in a few words, such as ``16x1, 75 %, outputs_r16_avx2, 3.1x``."""
        if not self.sparse:
            return f"kept dense: {self.reason}"
        sparsity = "" if self.density is None else f"{100 * (1 - self.density):.3g} %"
        return ", ".join(filter(None, (self.granularity, sparsity, self.kernel, self.gain, self.reason)))


@dataclass(frozen=True)
class Report:
    """What ``sparsify_`` did. ``print`` shows it as a table; iterating gives its rows.

    Attributes:
        rows: one row for each Linear and Conv2d layer of the model, in the model's order.
        machine: processor, instruction set and threads of the measurements.
    """

    rows: tuple[LayerReport, ...]
    machine: str = ""

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, layer: str | int) -> LayerReport:
        """The row of the layer with that name, or at that place."""
        if isinstance(layer, int):
            return self.rows[layer]
        for row in self.rows:
            if row.layer == layer:
                return row
        raise KeyError(layer)

    @property
    def sparse_layers(self) -> int:
        """Number of sparse layers."""
        return sum(row.sparse for row in self.rows)

    @property
    def bytes_before(self) -> int:
        """Bytes of the weights before."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of the weights now, indices included."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def us_before(self) -> float | None:
        """Microseconds of all the measured layers as they were; None if nothing was measured."""
        return self._total("dense_us")

    @property
    def us_after(self) -> float | None:
        """Microseconds of the same layers as they are now."""
        return self._total("sparse_us")

    @property
    def summary(self) -> str:
        """One line: how many layers, bytes and microseconds, before and after."""
        if not self.rows:
            return "no nn.Linear or nn.Conv2d in this model"
        parts = [
            f"{self.sparse_layers} sparse, {len(self) - self.sparse_layers} dense",
            f"weights {_megabytes(self.bytes_before)} -> {_megabytes(self.bytes_after)}",
        ]
        if self.us_before is not None and self.us_after:
            gain = times(self.us_before / self.us_after)
            parts.append(
                f"measured layers {self.us_before:,.0f} -> {self.us_after:,.0f} us ({gain} over eager PyTorch)"
            )
        return "; ".join(parts)

    def __str__(self) -> str:
        cells = [
            (
                row.layer,
                "x".join(map(str, row.shape)),
                _tokens(row),
                _microseconds(row.dense_us),
                _microseconds(row.sparse_us),
                "" if row.spread is None else f"{row.spread:.2f}",
                row.verdict,
            )
            for row in self.rows
        ]
        columns = ("layer", "shape", "tokens", "dense us", "sparse us", "spread", "verdict")
        lines = [text_table(columns, cells)] if cells else []
        return "\n".join([*lines, *filter(None, (self.summary, self.machine))])

    def _total(self, after: str) -> float | None:
        measured = [row for row in self.rows if row.dense_us is not None and row.sparse_us is not None]
        if not measured:
            return None
        return sum(getattr(row, after if row.sparse else "dense_us") for row in measured)


def times(ratio: float) -> str:
    """A speed-up for people, such as ``0.93x`` or ``3.1x``."""
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x"


def _tokens(row: LayerReport) -> str:
    if not row.calls:
        return "" if row.calls is None else "0"
    return str(row.tokens) if row.calls == 1 else f"{row.tokens} in {row.calls} calls"


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"
