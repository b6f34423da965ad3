"""One self-contained HTML page: a chart, what it means, the table behind it, the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chart import Chart

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        title: heading.
        intro: one paragraph below it.
        chart: the picture, drawn once wide and once for phones.
        findings: sentences.
        columns: names of the table's columns; the first names the row.
        rows: cells, as text.
        notes: how the numbers were made; sentences.
        environment: facts about the machine and the software.
        records: the same as data, embedded as JSON.
    """

    title: str
    intro: str
    chart: Chart
    findings: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    environment: Mapping[str, str]
    records: Any


def render(page: Page) -> str:
    """The page as HTML text. It refers to nothing outside itself."""
    # Imported here: only this needs it, and torch brings it along.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = templates.get_template("page.html.j2").render(
        page=page, wide=page.chart.svg(868, 480), narrow=page.chart.svg(368, 460)
    )
    return text
