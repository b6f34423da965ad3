"""Prune one model in several ways, and measure what each gains and what it costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..layouts import Block, Granularity, Unstructured
from ..nn import Sparse, densify_, sparsify_
from ..plan import Sample, interleave
from ..prune import Calibration
from .evaluate import Quality, difference_error, rate

Step = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Shows the progress of one step: title and number of parts in, "one more is done" out."""

LARGEST_DIFFERENCE = 1e-3
"""Between a sparse model's outputs and its densified twin's, as a share of the largest output. Rounding
is a hundredth of it, a wrong kernel a thousand times as much."""


@dataclass(frozen=True)
class Subject:
    """What is pruned and how it is judged.

    Attributes:
        model: called with ``input_ids``; its blocks are ``model.encoder.layer``.
        documents: rated documents, token ids ``[1, tokens]`` each.
        ratings: human similarity of each pair, upper triangle of ``[documents, documents]``.
        background: documents to calibrate on, disjoint from the rated ones.
        batch: token ids ``[rows, columns]`` whose forward pass is timed.
    """

    model: nn.Module
    documents: Sequence[Tensor]
    ratings: Tensor
    background: Sequence[Tensor]
    batch: Tensor


@dataclass(frozen=True)
class Settings:
    """What to try: all granularities at all densities, each timed up to ``rounds`` times.

    Attributes:
        granularities: the first is also pruned by magnitude alone, without the update, to
            see what calibration is worth.
        densities: shares of the weights that are kept, descending.
        rounds: interleaved rounds of the timing.
        seconds: after which timing stops early.
        compiled: try ``torch.compile`` on all models.
    """

    granularities: tuple[Granularity, ...] = (Block(16, 1), Block(4, 1), Block(16, 16), Unstructured())
    densities: tuple[float, ...] = (0.5, 0.25, 0.1)
    rounds: int = 30
    seconds: float = 75.0
    compiled: bool = True


@dataclass(frozen=True)
class Point:
    """One way to prune: quality, and speed where it was timed.

    Attributes:
        granularity: label, or ``dense``.
        method: ``dense``, ``calibrated`` (masks and update from calibration data) or ``magnitude``.
        density: share of the Linear layers' weights that is kept.
        pearson, spearman: agreement with the ratings.
        loss: Pearson of the dense model minus ours.
        loss_error: standard error of ``loss``.
        megabytes: of the Linear layers' weights, indices included.
        latency_ms: median time of the batch; None if not timed by itself.
        quartiles_ms: first and third quartile.
        speedup: dense time over ours, median of the ratios within a round; for ``magnitude``, which is not timed,
            that of the calibrated masks of equal granularity and density.
        speedup_quartiles: of the same ratios; None if not timed by itself.
        remark: what to know about the row; may be empty.
    """

    granularity: str
    method: str
    density: float
    pearson: float
    spearman: float
    loss: float
    loss_error: float
    megabytes: float
    latency_ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    speedup: float = 1.0
    speedup_quartiles: tuple[float, float] | None = None
    remark: str = ""

    @property
    def efficiency(self) -> float | None:
        """Speed-up x density of the whole model: 1.0 if each dropped weight saved its share of the time."""
        return None if self.latency_ms is None else self.speedup * self.density

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "efficiency": self.efficiency}


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        points: the dense model first.
        baseline: the faster dense model: ``eager`` or ``compiled``.
        baselines_ms: median time of each dense model that was tried.
        sparse_runs: how the sparse models ran: ``eager`` or ``compiled``.
        compile_failure: why nothing was compiled, though it was tried; else empty.
        rounds: interleaved rounds of the timing.
        kernels: kernels that ran, by granularity.
        layers: number of pruned layers.
        weights: number of their weights.
        largest_difference: between sparse and densified outputs, as a share of the largest output.
        calibration_tokens: number of tokens that were calibrated on.
        seconds: time that everything took.
    """

    points: list[Point]
    baseline: str
    baselines_ms: dict[str, float]
    sparse_runs: str
    compile_failure: str
    rounds: int
    kernels: dict[str, list[str]]
    layers: int
    weights: int
    largest_difference: float
    calibration_tokens: int
    seconds: float

    @property
    def dense(self) -> Point:
        """The dense model."""
        return self.points[0]

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "points": [point.record() for point in self.points]}


@dataclass
class _Candidate:
    """A pruned model that was judged, and what is needed to time it; without ``model`` it is not timed."""

    granularity: str
    method: str
    density: float
    quality: Quality
    bytes: int
    remark: str = ""
    model: nn.Module | None = field(default=None, repr=False)
    expected: Tensor | None = field(default=None, repr=False)
    kernels: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.granularity} {self.density}"


def run(subject: Subject, settings: Settings, step: Step) -> Result:
    """Prune, judge and time.

    Raises:
        RuntimeError: a sparse model's outputs are not those of its densified twin.
    """
    start = time.perf_counter()
    linears = _linears(subject.model)
    with step("Calibrate", len(subject.background)) as advance:
        calibration = Calibration.collect(subject.model, subject.background, progress=lambda done, total: advance())
    candidates = list(_prune_and_judge(subject, settings, calibration, step))
    timed = _time(subject, settings, [c for c in candidates if c.model is not None], step)

    baseline = min(timed.dense, key=lambda name: timed.dense[name].median)
    speeds = {name: _speed(latency, timed.dense[baseline]) for name, latency in timed.sparse.items()}
    kernels: dict[str, set[str]] = {}
    for candidate in candidates:
        kernels.setdefault(candidate.granularity, set()).update(candidate.kernels)
        if candidate.method == "magnitude" and candidate.name in speeds:
            # The same kernels on as many weights; not timed again.
            speeds[f"magnitude {candidate.name}"] = {"speedup": speeds[candidate.name]["speedup"]}
    dense = candidates[0]
    points = []
    for candidate in candidates:
        name = f"magnitude {candidate.name}" if candidate.method == "magnitude" else candidate.name
        if candidate is dense:
            speed = _speed(timed.dense[baseline], timed.dense[baseline])
        else:
            speed = speeds.get(name, {})
        points.append(_point(candidate, dense.quality, subject.ratings, speed))
    return Result(
        points=points,
        baseline=baseline,
        baselines_ms={name: latency.median * 1e3 for name, latency in timed.dense.items()},
        sparse_runs="compiled" if "compiled" in timed.dense else "eager",
        compile_failure=timed.compile_failure,
        rounds=timed.dense[baseline].rounds,
        kernels={granularity: sorted(used) for granularity, used in kernels.items() if used},
        layers=len(linears),
        weights=sum(layer.weight.numel() for layer in linears.values()),
        largest_difference=timed.largest_difference,
        calibration_tokens=sum(document.numel() for document in subject.background),
        seconds=time.perf_counter() - start,
    )


def _prune_and_judge(
    subject: Subject, settings: Settings, calibration: Calibration, step: Step
) -> Iterator[_Candidate]:
    """The dense model, then each pruned one."""
    dense_bytes = sum(layer.weight.nbytes for layer in _linears(subject.model).values())

    def judge(model: nn.Module) -> Quality:
        return rate(model, subject.documents, subject.ratings)

    with step("Prune and judge", 1 + len(settings.densities) * (len(settings.granularities) + 1)) as advance:
        yield _Candidate("dense", "dense", 1.0, judge(subject.model), dense_bytes)
        advance()
        for granularity, density in product(settings.granularities, settings.densities):
            model = _twin(subject.model)
            report = sparsify_(model, Sparse(granularity, 1 - density), calibration=calibration)
            yield _Candidate(
                granularity.label,
                "calibrated",
                density,
                judge(model),
                report.bytes_after,
                model=model,
                expected=_output(_densified(model), subject.batch),
                kernels={row.kernel for row in report if row.kernel},
            )
            advance()
        first = settings.granularities[0]
        for density in settings.densities:
            model = _twin(subject.model)
            report = sparsify_(model, Sparse(first, 1 - density))
            yield _Candidate(
                first.label,
                "magnitude",
                density,
                judge(model),
                report.bytes_after,
                remark="magnitude alone, no update",
            )
            advance()


def _point(candidate: _Candidate, dense: Quality, ratings: Tensor, speed: Mapping[str, Any]) -> Point:
    quality = candidate.quality
    return Point(
        candidate.granularity,
        candidate.method,
        candidate.density,
        quality.pearson,
        quality.spearman,
        loss=dense.pearson - quality.pearson,
        loss_error=difference_error(quality, dense, ratings),
        megabytes=candidate.bytes / 1e6,
        remark=candidate.remark,
        **speed,
    )


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _twin(model: nn.Module) -> nn.Module:
    """A copy whose modules may be replaced; it shares all tensors with the original."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _densified(model: nn.Module) -> nn.Module:
    twin = _twin(model)
    densify_(twin)
    return twin


@dataclass
class _Timed:
    dense: dict[str, Sample]
    sparse: dict[str, Sample]
    compile_failure: str
    largest_difference: float


def _time(subject: Subject, settings: Settings, candidates: list[_Candidate], step: Step) -> _Timed:
    """Time the dense model, eager and compiled, and all sparse ones in one interleaved run."""
    batch = subject.batch
    dense: dict[str, nn.Module] = {"eager": subject.model}
    sparse: dict[str, nn.Module] = {c.name: c.model for c in candidates if c.model is not None}
    failure = ""
    # All models share the code of their blocks; each granularity and density is one more specialisation of it.
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        if settings.compiled:
            with step("Compile", len(sparse) + 1) as advance:
                whole: Any = torch.compile(_twin(subject.model))
                failure = _failure(lambda: _output(whole, batch))
                advance()
                if not failure:
                    dense["compiled"] = whole
                    for model in sparse.values():
                        # Block by block: the blocks of a model then share one compilation.
                        for block in model.encoder.layer:  # type: ignore[union-attr]
                            block.compile()
                        _output(model, batch)
                        advance()
        largest = max((_difference(c, _output(sparse[c.name], batch)) for c in candidates), default=0.0)
        functions = {f"dense {name}": _caller(model, batch) for name, model in dense.items()}
        functions.update({name: _caller(model, batch) for name, model in sparse.items()})
        with step("Time, interleaved", settings.rounds) as advance:
            latencies = interleave(functions, settings.rounds, longest=settings.seconds, progress=advance)
    return _Timed(
        dense={name: latencies[f"dense {name}"] for name in dense},
        sparse={name: latencies[name] for name in sparse},
        compile_failure=failure,
        largest_difference=largest,
    )


def _caller(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    return lambda: model(input_ids=batch)


def _output(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        hidden: Tensor = model(input_ids=batch).last_hidden_state
    return hidden


def _failure(attempt: Callable[[], object]) -> str:
    """Why compiling does not work here, empty if it does; it needs a C++ compiler, and fails in many ways."""
    try:
        attempt()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return ""


def _difference(candidate: _Candidate, found: Tensor) -> float:
    assert candidate.expected is not None
    difference = float((found - candidate.expected).abs().max() / candidate.expected.abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"{candidate.name}: outputs differ from the densified model's by {difference:.1e} of the largest one"
        )
    return difference


def _speed(ours: Sample, dense: Sample) -> dict[str, Any]:
    ratio = dense.over(ours)
    first, third = ours.quartiles
    return {
        "latency_ms": ours.median * 1e3,
        "quartiles_ms": (first * 1e3, third * 1e3),
        "speedup": ratio.median,
        "speedup_quartiles": ratio.quartiles,
    }
