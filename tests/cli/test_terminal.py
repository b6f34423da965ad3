"""What people see: bars and tables on a terminal, with rich and without, and plain text elsewhere."""

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import pytest

from sparsekern.cli import progress
from sparsekern.cli.table import print_table

COLUMNS, ROWS = ("kernel", "dtypes"), [("outputs_r16_avx2", "float32, bfloat16, float16"), ("x", "[bold]float32")]
COLOR = re.compile(r"\x1b\[[\d;]*3[0-9]")


class Terminal(io.StringIO):
    """A stream that says somebody watches."""

    def isatty(self) -> bool:
        return True


def on_terminal(action: Callable[[], object]) -> str:
    """What the action shows there."""
    shown = Terminal()
    with redirect_stdout(shown), redirect_stderr(shown):
        action()
    return shown.getvalue()


@pytest.fixture(autouse=True)
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 100 columns with colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rich", "rich.box", "rich.console", "rich.progress", "rich.table", "rich.text"):
        monkeypatch.setitem(sys.modules, name, None)


def three_parts() -> None:
    with progress.step("Prune", 3) as advance:
        for _ in range(3):
            advance()


def test_elsewhere_a_step_is_one_line_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    three_parts()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Prune: 0 s\n")


def test_a_terminal_without_rich_shows_a_plain_bar(no_rich: None) -> None:
    states = on_terminal(three_parts).split("\r")[1:]
    assert [state.count("#") for state in states] == [0, 10, 20, 30]
    assert states[-1].startswith("Prune ") and "3/3" in states[-1] and states[-1].endswith("\n")


def test_a_plain_bar_leaves_its_line_when_the_step_fails(no_rich: None) -> None:
    def fail() -> None:
        with pytest.raises(RuntimeError), progress.step("Prune", 3) as advance:
            advance()
            raise RuntimeError

    assert on_terminal(fail).endswith("s\n")


def test_a_plain_bar_ends_at_its_end(no_rich: None) -> None:
    def too_often() -> None:
        with progress.step("Prune", 1) as advance:
            advance()
            advance()

    assert "2/1" not in on_terminal(too_often)


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_with_rich_shows_its_bar(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    shown = on_terminal(three_parts)
    assert "Prune" in shown and "3/3" in shown
    assert bool(COLOR.search(shown)) != no_color


def table() -> None:
    print_table(COLUMNS, ROWS)


def test_in_a_pipe_a_table_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    assert capsys.readouterr().out.splitlines()[:2] == [
        "kernel            dtypes",
        "----------------  --------------------------",
    ]


def test_a_terminal_without_rich_gets_the_same_table(no_rich: None) -> None:
    assert on_terminal(table).startswith("kernel            dtypes\n----")


def test_a_terminal_with_rich_gets_a_table_with_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = on_terminal(table)
    assert "\N{BOX DRAWINGS LIGHT HORIZONTAL}" in shown and "[bold]float32" in shown, "a label is no markup"
    assert not COLOR.search(shown)


def test_on_a_narrow_terminal_names_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "34")
    shown = on_terminal(table)
    assert "outputs_r16_avx2" in shown and "float32, bfloat16, float16" not in shown
