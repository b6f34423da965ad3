"""Tables for people: rich on a terminal that has it, aligned text everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..report.table import Rows, text_table


def print_table(columns: Sequence[str], rows: Rows) -> None:
    """Print rows under their column names."""
    # In a pipe rich would wrap at 80 columns, which spoils the table for whoever reads it there.
    if not (sys.stdout.isatty() and _print_rich(columns, rows)):
        print(text_table(columns, rows))


def _print_rich(columns: Sequence[str], rows: Rows) -> bool:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name, width in zip(columns, widths, strict=True):
        # Where the terminal is too narrow, only the widest column wraps: names stay whole.
        table.add_column(name, no_wrap=width < max(widths))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
    return True
