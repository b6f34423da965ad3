"""Measuring a host: its rates, and which kernel is the fastest for a list of cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._native import native
from ..layouts import Granularity, PackedWeight, dtype_name, pack
from .choose import HostPlan
from .cost import Work, predict
from .measure import interleave
from .rates import Rates, measure_rates
from .registry import Backend, Request
from .select import select
from .store import Entry, host_key

PASSES = 3
"""Over all cases. A neighbour may slow some kernels more than others, for as long as a pass takes."""
ROUNDS, LONGEST = 10, 0.1
"""Of a case in a pass, and the seconds after which there are fewer."""

GAIN = 1.03
"""By which the best time of another kernel must beat that of the first line, in every pass its median too."""
HOPELESS = 2.5
"""A kernel is not timed if the model gives it so many times the least time."""


@dataclass(frozen=True)
class Case:
    """A product to time.

    Attributes:
        granularity: of the weight.
        density: share of the groups that are kept; None where the granularity implies it.
        out_features: outputs.
        in_features: inputs.
        tokens: rows of the activation.
    """

    granularity: Granularity
    density: float | None
    out_features: int
    in_features: int
    tokens: int


def measure_host(host: HostPlan) -> Rates:
    """Measure the rates of the host at the instruction set in use, and keep them in its store."""
    rates = measure_rates()
    host.store.keep_rates(host_key(native.isa()), rates.record())
    host.refresh()
    return rates


def time_cases(
    host: HostPlan,
    rates: Rates,
    cases: Iterable[Case],
    dtype: torch.dtype = torch.float32,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Entry]:
    """Time the candidates of each case in turn, and keep the fastest in the host's store.

    Every case is measured in ``PASSES`` passes. What comes out of one, and is kept, is all that is known so far: who
    stops early loses nothing.

    Args:
        host: the plan whose store keeps the entries, and which knows them in the end.
        rates: of the host, to predict with.
        cases: those that no back end has a choice for are left out.
        dtype: of weights and activations.
        progress: called after each case of a pass.

    Raises:
        RuntimeError: a kernel's outputs are not those of its weight.
    """
    key = host_key(native.isa())
    runs = [_Run(case, dtype, rates) for case in cases]
    try:
        for _ in range(PASSES):
            weight = _RandomWeight(dtype)
            for run in runs:
                if len(run.kernels) > 1:
                    run.measure(weight.packed(run.case))
                    entry = run.entry()
                    host.store.keep(key, entry)
                    yield entry
                progress()
    finally:
        host.refresh()


@dataclass
class _RandomWeight:
    """The weight of the last case, for the next one often has the same."""

    dtype: torch.dtype
    case: Case | None = None
    weight: PackedWeight | None = None

    def packed(self, case: Case) -> PackedWeight:
        same = replace(case, tokens=0)
        if self.weight is None or self.case != same:
            generator = torch.Generator().manual_seed(0)
            shape = (case.out_features, case.in_features)
            scores, dense = (torch.rand(shape, generator=generator) for _ in range(2))
            sparsity = None if case.density is None else 1 - case.density
            mask = case.granularity.mask(scores, sparsity)
            self.case, self.weight = same, pack((dense - 0.5).to(self.dtype), case.granularity, mask)
        return self.weight


@dataclass
class _Run:
    """What has been measured of a case."""

    case: Case
    dtype: torch.dtype
    rates: Rates
    best: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    density: float = 0.0

    def __post_init__(self) -> None:
        case = self.case
        self.request = Request(case.granularity, (case.out_features, case.in_features), self.dtype, "cpu")
        self.backend: Backend = select(self.request)
        self.first = self.backend.kernel_name(self.request, case.tokens)
        self.tiles = {record.name: record.tile for record in self.backend.candidates(self.request)}
        implied = case.granularity.implied_sparsity
        self.density = case.density if case.density is not None else 1 - (implied or 0.0)
        costs = {name: self.predicted(name) for name in self.tiles}
        limit = HOPELESS * min(filter(None, costs.values()), default=0.0)
        # Those that the model does not know cost it nothing.
        self.kernels = [name for name, cost in costs.items() if name == self.first or cost <= limit]

    def predicted(self, kernel: str) -> float:
        """Seconds by the model, 0 if it does not know the kernel; threads divide the work of one."""
        case, tile = self.case, self.tiles[kernel]
        if tile is None:
            return 0.0
        bfloat16 = self.dtype == torch.bfloat16
        work = Work(case.out_features, case.in_features, self.density, case.tokens, bfloat16)
        return predict(tile, work, self.rates).seconds / torch.get_num_threads()

    def measure(self, weight: PackedWeight) -> None:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.case.tokens, self.case.in_features, generator=generator).to(self.dtype)
        self.density = weight.values.numel() / (self.case.out_features * self.case.in_features)

        def call(kernel: str) -> Callable[[], Tensor]:
            arguments = (weight.granularity, weight.shape, weight.tensors, None, "none")
            return lambda: self.backend.linear_by(kernel, x, *arguments)

        calls = {kernel: call(kernel) for kernel in self.kernels}
        self._check(calls, x, weight)
        samples = interleave(calls, ROUNDS, longest=LONGEST)
        for kernel, sample in samples.items():
            self.best[kernel] = min(self.best.get(kernel, math.inf), *sample.values)
            self.ratios.setdefault(kernel, []).append(samples[self.first].over(sample).median)

    def _check(self, calls: dict[str, Callable[[], Tensor]], x: Tensor, weight: PackedWeight) -> None:
        """Of a few rows, in float64: whatever is chosen must be right."""
        some = slice(0, 4)
        expected = x[some].double() @ weight.to_dense().double().T
        allowed = math.sqrt(torch.finfo(self.dtype).eps) * float(expected.abs().max())
        for kernel, call in calls.items():
            if not float((call()[some].double() - expected).abs().max()) <= allowed:
                raise RuntimeError(
                    f"{kernel}: expected the product with {weight.granularity.label} {list(weight.shape)} at "
                    f"{len(x)} tokens within {allowed:.1e}; please report this fault of the kernel"
                )

    def fastest(self) -> str:
        """The fastest kernel, or the first line where none is faster beyond doubt."""
        fastest = min(self.best, key=lambda name: self.best[name])
        sure = self.best[self.first] > GAIN * self.best[fastest] and min(self.ratios[fastest]) > 1
        return fastest if sure else self.first

    def entry(self) -> Entry:
        """What is to be kept."""
        kernel = self.fastest()
        return Entry(
            granularity=self.case.granularity.spec,
            dtype=dtype_name(self.request.dtype),
            out_features=self.case.out_features,
            in_features=self.case.in_features,
            density=self.density,
            tokens=self.case.tokens,
            threads=torch.get_num_threads(),
            kernel=kernel,
            seconds=self.best[kernel],
            first=self.first,
            first_seconds=self.best[self.first],
            predicted=self.predicted(kernel),
        )
