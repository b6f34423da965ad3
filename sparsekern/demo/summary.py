"""What an experiment found, for people: table, findings, page."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from ..report.chart import Chart, Mark, Series
from ..report.html import Page
from .experiment import Point, Result

BARGAIN = 0.1
"""Loss of Pearson from which a model is called a loss rather than a bargain."""

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
    """What to use, what it costs, and where dense wins, in sentences."""
    dense = result.dense
    timed = [p for p in result.points if p.latency_ms is not None and p is not dense]
    front = [p for p in timed if p.speedup > 1 and not any(_beats(other, p) for other in timed)]
    best = max((p for p in front if p.loss <= p.loss_error), key=lambda p: p.speedup, default=None)
    found = []
    if disturbed(result):
        found.append(
            "Do not trust these times: other work on this machine disturbed them "
            f"(dense {_range(dense.quartiles_ms, 0)} ms). Run it again when the machine is idle."
        )
    if best:
        found.append(
            f"Use {_name(best)}: {best.speedup:.2f}x, Pearson {best.pearson:.3f} against {dense.pearson:.3f} dense: "
            f"within the standard error of their difference ({best.loss_error:.3f})."
        )
    else:
        found.append("Use the dense model: nothing is faster and as good within the error of the evaluation.")
    bargains = [p for p in front if p is not best and p.loss < BARGAIN and p.speedup > (best.speedup if best else 1)]
    if bargains:
        bargains.sort(key=lambda p: p.speedup)
        offers = ", ".join(f"{p.speedup:.2f}x for {p.loss:.3f} of Pearson ({_name(p)})" for p in bargains)
        found.append(f"Faster at a price: {offers}.")
    lost = [p for p in timed if p.speedup <= 1 or p.loss >= BARGAIN]
    if lost:
        reasons = ", ".join(f"{_name(p)} ({_why(p)})" for p in lost)
        found.append(f"Dense wins, unless you retrain, over {reasons}.")
    for point in result.points:
        if point.method == "magnitude" and point.density == _middle(result):
            found.append(_calibration_pays(point, result))
    idle = [p for p in result.points if p.latency_ms is None and p.method == "calibrated"]
    if idle:
        kept = ", ".join(f"{p.pearson:.3f} at {p.density:.0%}" for p in idle)
        found.append(
            f"{idle[0].granularity.capitalize()} keeps quality best (Pearson {kept}), but has no fast kernel yet: 1.0x."
        )
    return found


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
    return [
        f"Speed-up is against the fastest dense PyTorch ({tried}); sparse models ran {result.sparse_runs}. "
        f"Whole model, batch of 8 x 128 tokens, all models interleaved, medians of {result.rounds} rounds. "
        "Quartiles of the speed-up are of the ratios within a round.",
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
        idle = points[0].latency_ms is None and not magnitude
        name = granularity + (", magnitude alone" if magnitude else ", no kernel yet" if idle else "")
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
    return f"{point.granularity}, density {point.density:.0%}: {point.speedup:.2f}x, Pearson {point.pearson:.3f}" + (
        f" ({point.remark})" if point.remark else ""
    )


def _name(point: Point) -> str:
    return f"{point.granularity} at {point.density:.0%} density"


def _beats(other: Point, point: Point) -> bool:
    """Whether a point is at least as fast and better."""
    return other.speedup >= point.speedup and other.pearson > point.pearson


def _why(point: Point) -> str:
    return f"{point.speedup:.2f}x" if point.speedup <= 1 else f"Pearson {point.pearson:.2f}"


def _middle(result: Result) -> float:
    densities = sorted({p.density for p in result.points if p.method == "magnitude"})
    return densities[len(densities) // 2]


def _calibration_pays(magnitude: Point, result: Result) -> str:
    twin = next(
        p
        for p in result.points
        if p.method == "calibrated" and (p.granularity, p.density) == (magnitude.granularity, magnitude.density)
    )
    return (
        f"Calibration is what makes it work: {_name(magnitude)}, magnitude alone reaches {magnitude.pearson:.3f}, "
        f"masks and update from calibration data {twin.pearson:.3f}, at the same speed."
    )


def _speed(point: Point) -> str:
    text = f"{point.speedup:.2f}x"
    if point.speedup_quartiles and point.method != "dense":
        return f"{text} {_range(point.speedup_quartiles, 2)}"
    return f"{text} ({point.remark})" if point.method == "calibrated" else text


def _range(quartiles: tuple[float, float] | None, digits: int) -> str:
    return "" if quartiles is None else f"({quartiles[0]:.{digits}f}-{quartiles[1]:.{digits}f})"
