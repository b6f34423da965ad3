"""What an experiment found, for people: table, findings, page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby

from ..report.chart import Chart, Mark, Series
from ..report.html import Page
from .experiment import Point, Result

TOLERABLE = 0.05
"""Loss of Pearson up to which a model counts as being as good as the dense one."""

SURE = 1.645
"""Standard errors that a normal error exceeds, on one side, once in twenty times."""

BARGAIN = 0.1
"""Loss of Pearson up to which a faster model is offered at a price."""

BUSY = 0.25
"""Distance of the dense model's quartiles, as a share of its median, from which timings are not to be trusted."""

COLUMNS = ("granularity", "density", "latency, ms", "speed-up", "efficiency", "Pearson", "Spearman", "MB")


def rows(result: Result) -> list[list[str]]:
    """The table behind the picture, one row a point; quartiles in brackets."""
    return [
        [
            label(point, result),
            f"{point.density:.0%}",
            "" if point.latency_ms is None else f"{point.latency_ms:.1f} {_range(point.quartiles_ms, 0)}",
            _speed(point),
            "" if point.efficiency is None else f"{point.efficiency:.2f}",
            f"{point.pearson:.3f}",
            f"{point.spearman:.3f}",
            f"{point.megabytes:.1f}",
        ]
        for point in result.points
    ]


def label(point: Point, result: Result) -> str:
    """What a row is about."""
    if point is result.dense:
        return f"dense, {result.baseline}"
    return f"{point.granularity}, magnitude" if point.method == "magnitude" else point.granularity


def findings(result: Result) -> list[str]:
    """What to use, what it costs, and where dense wins, in sentences that hold for these numbers."""
    timed = [p for p in result.points if p.latency_ms is not None and p is not result.dense]
    faster = [p for p in timed if _faster(p)]
    front = [p for p in faster if not any(_beats(other, p) for other in faster)]
    best = max((p for p in front if _as_good(p)), key=lambda p: p.speedup, default=None)
    found = [
        _disturbance(result) if disturbed(result) else "",
        _advice(best, result.dense),
        _bargains([p for p in front if p.loss < BARGAIN and p.speedup > (best.speedup if best else 1)]),
        _listed("Too high a price unless you retrain", [p for p in faster if p.loss >= BARGAIN]),
        _listed("Dense is as fast as or faster than", [p for p in timed if not _faster(p)]),
        *(_calibration(p, result) for p in result.points if p.method == "magnitude" and p.density == _middle(result)),
    ]
    return [text for text in found if text]


def disturbed(result: Result) -> bool:
    """Whether the times scatter more than those of an idle machine."""
    dense = result.dense
    if dense.latency_ms is None or dense.quartiles_ms is None:
        return False
    return dense.quartiles_ms[1] - dense.quartiles_ms[0] > BUSY * dense.latency_ms


def page(result: Result, environment: Mapping[str, str]) -> Page:
    """The HTML report."""
    return Page(
        title="A pruned transformer: speed against quality",
        intro=(
            f"MiniLM (all-MiniLM-L6-v2), an unmodified Hugging Face BertModel: the {result.layers} Linear layers of "
            f"its encoder ({result.weights / 1e6:.1f} million weights) were pruned in one shot, without training, and "
            "run on sparse kernels. Quality is the agreement of its document similarities with human ratings."
        ),
        chart=chart(result),
        findings=findings(result),
        columns=COLUMNS,
        rows=rows(result),
        notes=notes(result),
        environment=environment,
        records=result.record(),
    )


def notes(result: Result) -> list[str]:
    """How the numbers were made."""
    tried = ", ".join(f"{name} {ms:.1f} ms" for name, ms in result.baselines_ms.items())
    if result.compile_failure:
        tried += f"; torch.compile does not work here, {result.compile_failure}"
    against = "the faster of eager and compiled" if len(result.baselines_ms) > 1 else "eager"
    timing = [
        f"Speed-up is against {against} dense PyTorch ({tried}); sparse models ran {result.sparse_runs}.",
        f"Whole model, batch of 8 x 128 tokens, all models interleaved, {result.rounds} rounds: medians and quartiles "
        "of the times, and of the ratios within a round.",
    ]
    if any(point.efficiency is not None and point.efficiency > 1 for point in result.points[1:]):
        timing.insert(1, "An efficiency above 1 says that the dense model leaves part of this machine idle.")
    return [
        " ".join(timing),
        "Magnitude masks were not timed. Where the picture needs a speed, it takes that of the calibrated masks of as "
        "many weights in the same granularity.",
        "Efficiency is speed-up x density. Attention, normalisation and embeddings stay dense, so it falls with "
        "density. MB are the Linear weights, indices included.",
        "Quality is measured on the 50 documents of Lee et al. (2005), 1,225 pairs that people rated for similarity; "
        f"masks and least-squares update come from 300 other documents ({result.calibration_tokens:,} tokens), dense "
        "inputs, one layer at a time. Standard errors by leaving out one document at a time.",
        "Before timing, each sparse model's outputs were compared with those of the same weights in dense layers: "
        f"they differ by at most {result.largest_difference:.0e} of the largest output.",
    ]


def chart(result: Result) -> Chart:
    """Speed-up against Pearson, one line a granularity."""
    series: list[Series] = []
    colors: dict[str, int] = {}
    for (granularity, method), group in groupby(result.points[1:], key=lambda p: (p.granularity, p.method)):
        color = colors.setdefault(granularity, len(colors))
        magnitude = method == "magnitude"
        points = list(group)
        name = granularity + (", magnitude alone" if magnitude else "")
        marks = [Mark(p.speedup, p.pearson, "" if magnitude else f"{p.density:.0%}", _title(p)) for p in points]
        series.append(Series(name, marks, color, faint=magnitude))
    dense = result.dense
    return Chart(
        series=series,
        baseline=Mark(1.0, dense.pearson, "dense PyTorch", _title(dense)),
        x_label="speed-up of the whole model over dense PyTorch",
        y_label="Pearson correlation with human ratings",
        description="Speed-up against quality of pruned MiniLM, one line for each granularity",
    )


def _title(point: Point) -> str:
    speed = f"speed {_speed(point)}" if point.method == "magnitude" else f"{point.speedup:.2f}x"
    return f"{point.granularity}, density {point.density:.0%}: {speed}, Pearson {point.pearson:.3f}" + (
        f" ({point.remark})" if point.remark else ""
    )


def _name(point: Point) -> str:
    return f"{point.granularity} at {point.density:.0%} density"


def _beats(other: Point, point: Point) -> bool:
    """Whether a point is at least as fast and better."""
    return other.speedup >= point.speedup and other.pearson > point.pearson


def _faster(point: Point) -> bool:
    """Whether it was faster than dense in three of four rounds."""
    return point.speedup_quartiles is not None and point.speedup_quartiles[0] > 1


def _as_good(point: Point) -> bool:
    """Whether its loss is below ``TOLERABLE`` with 95 % confidence: the noisier it is, the harder to show."""
    return point.loss + SURE * point.loss_error < TOLERABLE


def _disturbance(result: Result) -> str:
    return (
        "Do not trust these times: other work on this machine disturbed them "
        f"(dense {_range(result.dense.quartiles_ms, 0)} ms). Run it again when the machine is idle."
    )


def _advice(best: Point | None, dense: Point) -> str:
    if best is None:
        return f"Use the dense model: nothing faster was shown to lose less than {TOLERABLE} of Pearson."
    return (
        f"Use {_name(best)}: {best.speedup:.2f}x, Pearson {best.pearson:.3f} against {dense.pearson:.3f} dense. With "
        f"95 % confidence it loses less than {TOLERABLE} (standard error of the difference {best.loss_error:.3f})."
    )


def _bargains(points: list[Point]) -> str:
    offers = (
        f"{p.speedup:.2f}x for {p.loss:.3f} \N{PLUS-MINUS SIGN} {p.loss_error:.3f} of Pearson ({_name(p)})"
        for p in sorted(points, key=lambda p: p.speedup)
    )
    return f"Faster at a price: {', '.join(offers)}." if points else ""


def _listed(what: str, points: list[Point]) -> str:
    names = ", ".join(f"{_name(p)} ({p.speedup:.2f}x, Pearson {p.pearson:.2f})" for p in points)
    return f"{what}: {names}." if points else ""


def _middle(result: Result) -> float:
    densities = sorted({p.density for p in result.points if p.method == "magnitude"})
    return densities[len(densities) // 2]


def _calibration(magnitude: Point, result: Result) -> str:
    twin = next(
        p
        for p in result.points
        if p.method == "calibrated" and (p.granularity, p.density) == (magnitude.granularity, magnitude.density)
    )
    gain = twin.pearson - magnitude.pearson
    # Both errors are of differences to the dense model, so this is at least that of the two from each other.
    clear = abs(gain) > SURE * math.hypot(twin.loss_error, magnitude.loss_error)
    verdict = "makes no clear difference here" if not clear else "pays" if gain > 0 else "does harm here"
    return (
        f"Calibration {verdict}: {_name(magnitude)}, magnitude alone reaches {magnitude.pearson:.3f}, "
        f"masks and update from calibration data {twin.pearson:.3f}."
    )


def _speed(point: Point) -> str:
    if point.method == "magnitude":
        return f"as {point.granularity}"
    text = f"{point.speedup:.2f}x"
    if point.speedup_quartiles and point.method != "dense":
        return f"{text} {_range(point.speedup_quartiles, 2)}"
    return f"{text} ({point.remark})" if point.method == "calibrated" else text


def _range(quartiles: tuple[float, float] | None, digits: int) -> str:
    return "" if quartiles is None else f"({quartiles[0]:.{digits}f}-{quartiles[1]:.{digits}f})"
