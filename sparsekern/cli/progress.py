"""Progress of long commands, on stderr: a bar where somebody watches, a line a step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[], None]


@contextmanager
def step(title: str, total: int) -> Iterator[Advance]:
    """Show one step of known length; call what it yields after each part of it."""
    if not sys.stderr.isatty():
        shown = _line(title)
    else:
        shown = _rich_bar(title, total) or _plain_bar(title, total)
    with shown as advance:
        yield advance


@contextmanager
def _line(title: str) -> Iterator[Advance]:
    start = time.monotonic()
    yield lambda: None
    print(f"{title}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _plain_bar(title: str, total: int) -> Iterator[Advance]:
    start, done = time.monotonic(), 0

    def show() -> None:
        filled = 30 * done // total
        bar = "#" * filled + "." * (30 - filled)
        line = f"\r{title:<32} [{bar}] {done}/{total} {time.monotonic() - start:4.0f} s"
        print(line, end="", file=sys.stderr, flush=True)

    def advance() -> None:
        nonlocal done
        done = min(done + 1, total)
        show()

    show()
    try:
        yield advance
    finally:
        print(file=sys.stderr)


def _rich_bar(title: str, total: int) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return None

    @contextmanager
    def bar() -> Iterator[Advance]:
        columns = (TextColumn(f"{title:<32}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)

    return bar()
