"""A scatter chart with lines as plain SVG: no plotting library, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Box = tuple[float, float, float, float]

MARKERS = ("circle", "square", "diamond", "triangle")

STYLE = """
.sk-chart { --ink: #1f2328; --muted: #59636e; --grid: #d8dee4; --page: #ffffff;
  --s0: #0072b2; --s1: #c2410c; --s2: #00805a; --s3: #7a5195; }
@media (prefers-color-scheme: dark) {
  .sk-chart { --ink: #e6edf3; --muted: #9198a1; --grid: #343b44; --page: #0d1117;
    --s0: #58b4f0; --s1: #ff9d5c; --s2: #3fd19d; --s3: #c9a0ea; } }
.sk-chart text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink); }
.sk-chart .grid { stroke: var(--grid); stroke-width: 1; }
.sk-chart .rule { stroke: var(--muted); stroke-width: 1.5; stroke-dasharray: 2 4; }
.sk-chart .tick, .sk-chart .axis { fill: var(--muted); }
.sk-chart .line { fill: none; stroke-width: 2.5; }
.sk-chart .faint { stroke-dasharray: 6 5; stroke-width: 1.5; }
.sk-chart .halo { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
"""


@dataclass(frozen=True)
class Mark:
    """One point: position, a short label beside it, and what a pointer resting on it reads."""

    x: float
    y: float
    label: str
    title: str


@dataclass(frozen=True)
class Series:
    """Points that belong together, joined by a line in the order given.

    Attributes:
        name: shown in the legend.
        marks: its points.
        color: number of its colour and marker, from 0; sixteen pairs of them differ.
        faint: dashed and with small markers.
    """

    name: str
    marks: Sequence[Mark]
    color: int
    faint: bool = False

    @property
    def paint(self) -> str:
        """Its colour, as CSS."""
        return f"var(--s{self.color % len(MARKERS)})"

    @property
    def marker(self) -> str:
        """The shape of its marks: once all colours are used up, they return with other shapes."""
        return MARKERS[(self.color + self.color // len(MARKERS)) % len(MARKERS)]


@dataclass(frozen=True)
class Chart:
    """What to draw.

    Attributes:
        series: lines.
        baseline: a point with a level line through it, such as the dense model.
        x_label, y_label: axis titles, with units.
        description: what a screen reader says.
    """

    series: Sequence[Series]
    baseline: Mark
    x_label: str
    y_label: str
    description: str

    def svg(self, width: int, height: int) -> str:
        """The chart as one ``<svg>`` element of its own style, to embed or to save.

        Args:
            width: of the drawing, in CSS pixels at its natural size; it fills the width it is given.
            height: likewise.
        """
        return _Drawing(self, width, height).svg()


class _Drawing:
    def __init__(self, chart: Chart, width: int, height: int) -> None:
        self.chart, self.width, self.height = chart, width, height
        self.columns = 1 if width < 480 else 3
        self.legend_rows = -(-(len(chart.series) + 1) // self.columns)
        self.left, self.right, self.top = 52, 18, 14 + 22 * self.legend_rows
        self.bottom = 50
        marks = [chart.baseline, *(mark for series in chart.series for mark in series.marks)]
        self.x_range = padded([mark.x for mark in marks])
        self.y_range = padded([mark.y for mark in marks])
        # Where labels and markers stand already, as left, top, right, bottom.
        self.taken = [self._around(mark) for mark in marks]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def svg(self) -> str:
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="sk-chart" viewBox="0 0 {self.width} {self.height}" '
            'style="width: 100%; height: auto" role="img" font-size="13">',
            f"<title>{escape(self.chart.description)}</title>",
            f"<style>{STYLE}</style>",
            *self._axes(),
        ]
        for series in self.chart.series:
            parts += self._series(series)
        for series in self.chart.series:
            parts += self._labels(series)
        return "\n".join([*parts, *self._baseline(), *self._legend(), "</svg>"])

    def _axes(self) -> list[str]:
        left, right = self.left, self.width - self.right
        bottom = self.height - self.bottom
        parts = []
        for value in nice_ticks(*self.y_range, 6):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(left - 8, y + 4, f"{value:g}", "tick", anchor="end"))
        for value in nice_ticks(*self.x_range, 4 if self.width < 480 else 7):
            x = self.x(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{bottom}"/>')
            parts.append(_text(x, bottom + 18, f"{value:g}\N{MULTIPLICATION SIGN}", "tick"))
        parts.append(_text((left + right) / 2, self.height - 10, self.chart.x_label, "axis"))
        middle = (self.top + bottom) / 2
        turn = f'transform="rotate(-90 14 {middle:.1f})"'
        parts.append(_text(14, middle, self.chart.y_label, "axis", extra=turn))
        return parts

    def _baseline(self) -> list[str]:
        mark = self.chart.baseline
        y = self.y(mark.y)
        return [
            f'<line class="rule" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f"<g><title>{escape(mark.title)}</title>"
            f'<path d="{_star(self.x(mark.x), y, 10)}" fill="var(--ink)" stroke="var(--page)"/></g>',
        ]

    def _series(self, series: Series) -> list[str]:
        color = series.paint
        path = " ".join(f"{self.x(mark.x):.1f},{self.y(mark.y):.1f}" for mark in series.marks)
        kind = "line faint" if series.faint else "line"
        parts = [f'<polyline class="{kind}" points="{path}" stroke="{color}"/>']
        for mark in series.marks:
            x, y = self.x(mark.x), self.y(mark.y)
            shape = _marker(series.marker, x, y, 4 if series.faint else 6)
            paint = f'fill="var(--page)" stroke="{color}"' if series.faint else f'fill="{color}" stroke="var(--page)"'
            parts.append(f"<g {paint}><title>{escape(mark.title)}</title>{shape}</g>")
        return parts

    def _labels(self, series: Series) -> list[str]:
        """Each label beside its mark, in the first direction in which nothing stands yet."""
        parts = []
        for mark in series.marks:
            if not mark.label:
                continue
            x, y, width = self.x(mark.x), self.y(mark.y), 7.0 * len(mark.label)
            places = [
                (x + 9, y - 6),
                (x - 9 - width, y + 15),
                (x + 9, y + 15),
                (x - 9 - width, y - 6),
                (x - width / 2, y - 11),
            ]
            boxes = [(left, base - 10, left + width, base + 2) for left, base in places]
            free = [i for i, box in enumerate(boxes) if self._inside(box) and not any(map(box_meets(box), self.taken))]
            place = free[0] if free else 0
            self.taken.append(boxes[place])
            left, base = places[place]
            style = f'font-size="11" style="fill: {series.paint}"'
            parts.append(_text(left, base, mark.label, "halo", "start", style))
        return parts

    def _around(self, mark: Mark) -> Box:
        x, y = self.x(mark.x), self.y(mark.y)
        return (x - 8, y - 8, x + 8, y + 8)

    def _inside(self, box: Box) -> bool:
        return (
            box[0] > self.left and box[2] < self.width - 4 and box[1] > self.top and box[3] < self.height - self.bottom
        )

    def _legend(self) -> list[str]:
        parts = []
        width = (self.width - self.left - self.right) / self.columns
        entries: list[Series | None] = [None, *self.chart.series]
        for place, series in enumerate(entries):
            x = self.left + (place % self.columns) * width + 8
            y = 16 + 22 * (place // self.columns)
            if series is None:
                parts.append(f'<path d="{_star(x, y, 9)}" fill="var(--ink)"/>')
                name = self.chart.baseline.label
            else:
                color = series.paint
                kind = "line faint" if series.faint else "line"
                parts.append(f'<line class="{kind}" x1="{x - 12}" x2="{x + 12}" y1="{y}" y2="{y}" stroke="{color}"/>')
                fill = "var(--page)" if series.faint else color
                shape = _marker(series.marker, x, y, 4 if series.faint else 5)
                parts.append(f'<g fill="{fill}" stroke="{color}">{shape}</g>')
                name = series.name
            parts.append(_text(x + 18, y + 4, name, "", "start"))
        return parts


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of some values and room around it for their markers."""
    low, high = min(values), max(values)
    margin = 0.07 * ((high - low) or abs(high) or 1.0)
    return low - margin, high + margin


def nice_ticks(low: float, high: float, wanted: int) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of ten between two numbers, about ``wanted`` of them."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def box_meets(box: Box) -> Callable[[Box], bool]:
    """A test for overlap with ``box``."""
    return lambda other: box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _text(x: float, y: float, text: str, css: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _marker(kind: str, x: float, y: float, size: float) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    if kind == "square":
        side = size * 1.8
        return f'<rect x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
    reach = size * 1.3
    corners = [(0, -reach), (reach, 0), (0, reach), (-reach, 0)]
    if kind == "triangle":
        corners = [(0, -reach), (reach, reach * 0.8), (-reach, reach * 0.8)]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _star(x: float, y: float, size: float) -> str:
    points = []
    for corner in range(10):
        reach = size if corner % 2 == 0 else size * 0.45
        angle = math.pi * (corner / 5 - 0.5)
        points.append(f"{x + reach * math.cos(angle):.1f} {y + reach * math.sin(angle):.1f}")
    return "M" + " L".join(points) + " Z"
