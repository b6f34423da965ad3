"""The command line as a user meets it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sparsekern.cli import UserError, main as cli
from sparsekern.cli.table import text_table


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([verb, "--help"])
    assert exit_.value.code == 0
    assert f"sparsekern {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("line", [[], ["prunes"], ["doctor", "--jsn"], ["kernels", "extra"]])
def test_mistyped_command_is_a_message_and_code_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(line)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_user_error_is_a_message_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: object) -> None:
        raise UserError("no such file: model.safetensors")

    monkeypatch.setattr(cli, "_module", lambda verb: SimpleNamespace(add_arguments=lambda parser: None, run=refuse))
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "sparsekern demo: no such file: model.safetensors\n"


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(cli, "_module", lambda verb: SimpleNamespace(add_arguments=lambda parser: None, run=fail))
    with pytest.raises(ValueError, match="a fault of ours"):
        cli.main(["demo"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    python = f"{sys.executable} -m sparsekern kernels --json"
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {python} | true"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_kernels_prints_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    import sparsekern as sk

    assert cli.main(["kernels", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in records] == [k.name for k in sk.kernels()]
    assert cli.main(["kernels"]) == 0
    table = capsys.readouterr().out
    assert all(r["name"] in table for r in records)


def test_text_table_aligns_its_columns() -> None:
    assert text_table(("a", "long"), [("1", "2"), ("three", "4")]).splitlines() == [
        "a      long",
        "-----  ----",
        "1      2",
        "three  4",
    ]


def test_text_table_without_rows_has_its_head() -> None:
    assert text_table(("a",), []).splitlines() == ["a", "-"]
