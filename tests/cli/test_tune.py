"""``tune`` and ``plan``: measuring this host, and saying what runs on it."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsekern import plan
from sparsekern._native import native
from sparsekern.cli import tune as tune_verb
from sparsekern.cli.main import INTERRUPTED, main
from sparsekern.layouts import parse
from sparsekern.plan import Entry, Store, host_key, rates, tune

pytestmark = pytest.mark.needs_native

TINY = ["tune", "--shapes", "64x96", "--granularities", "block(16,1)", "nm(2,4,1)", "--densities", "0.5"]
TINY += ["--tokens", "1", "24"]


@pytest.fixture(autouse=True)
def quick_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPARSEKERN_CACHE", str(tmp_path))
    monkeypatch.setattr(rates, "SECONDS", 0.002)
    monkeypatch.setattr(rates, "BUFFERS", (32 * 1024, 1024**2))
    monkeypatch.setattr(tune, "LONGEST", 0.0)
    plan.renew()
    yield
    plan.renew()


def kept() -> list[Entry]:
    return Store().read(host_key(native.isa())).entries


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_keeps_rates_and_cases(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, *TINY, "--json"))
    assert found["trouble"] is None and Path(found["store"]).exists()
    assert [(e["granularity"], e["tokens"]) for e in found["entries"]] == [
        ("block(16,1)", 1), ("block(16,1)", 24), ("nm(2,4,1)", 1), ("nm(2,4,1)", 24),
    ]  # fmt: skip
    known = Store().read(host_key(native.isa()))
    assert known.rates == found["rates"]
    assert sorted(map(str, known.entries)) == sorted(str(Entry(**entry)) for entry in found["entries"])
    for entry in found["entries"]:
        assert 0 < entry["seconds"] <= entry["first_seconds"] and entry["predicted"] > 0
        assert entry["kernel"] in {record.name for record in plan.kernels()}
    assert found["summary"]["cases"] == 4
    assert plan.host_plan().tuned, "this process knows too"


def test_prints_a_table_and_where_it_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = output(capsys, *TINY).splitlines()
    assert lines[0].split()[:4] == ["granularity", "density", "in", "out"]
    assert len([line for line in lines if line.startswith(("block(16,1)", "nm(2,4,1)"))]) == 4
    assert any(line.startswith("Of 4 cases") for line in lines)
    assert lines[-1] == f"Kept in {tmp_path / 'plan.sqlite'}"


def test_an_interrupt_keeps_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    whole = tune.interleave

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(tune, "interleave", interrupted)
    assert main([*TINY, "--json"]) == INTERRUPTED
    found = json.loads(capsys.readouterr().out)
    assert len(found["entries"]) == len(kept()) == 2
    assert Store().read(host_key(native.isa())).rates == found["rates"]


def test_reset_forgets_this_host(capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, *TINY)
    assert len(kept()) == 4
    assert "Forgot this host" in output(capsys, "tune", "--reset")
    assert kept() == [] and not plan.host_plan().tuned


def test_without_a_place_to_keep_it_the_process_knows_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEKERN_CACHE", str(tmp_path / "file"))
    said = output(capsys, *TINY).splitlines()[-1]
    assert said.count("in memory only") == 1 and "cannot be used" in said and said.endswith(" aside.")
    main(["doctor"])
    said = capsys.readouterr().out
    assert "plan      tuned; " in said and "in memory only" in " ".join(said.split())


def test_what_the_model_does_not_know_has_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    rate = rates.measure_rates()
    entry = Entry("block(16,1)", "bfloat16", 96, 64, 0.5, 24, 1, "a", 1.0, "a", 1.0, 0.0)
    tune_verb._print(Store(), rate, [entry], as_json=False)
    said = capsys.readouterr().out
    assert said.splitlines()[2].split()[-1] == "-" and "The model" not in said


def test_kernels_that_the_model_does_not_know_are_timed_and_make_no_other_hopeless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = tune.Case(parse("block(16,1)"), 0.5, 96, 64, 24)
    (cpu,) = (backend for backend in plan.backends() if backend.name == "cpu")
    known = cpu.candidates(plan.Request(case.granularity, (96, 64), torch.float32, "cpu"))[0]
    costs = {"pairs": 0.0, "fast": 1.0, "near": 2.4, "hopeless": 2.6}
    records = [dataclasses.replace(known, name=name) for name in costs]
    monkeypatch.setattr(type(cpu), "candidates", lambda *_: records)
    monkeypatch.setattr(type(cpu), "kernel_name", lambda *_: "pairs")
    monkeypatch.setattr(tune._Run, "predicted", lambda _, kernel: costs[kernel])
    run = tune._Run(case, torch.float32, rates.measure_rates())
    assert run.kernels == ["pairs", "fast", "near"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "blocks(16,1)", "768x3072"], "unknown granularity 'blocks(16,1)': expected one of"),
        (["plan", "block(16,1)", "768"], "expected INxOUT such as 768x3072, got '768'"),
        (["plan", "block(16,1)", "0x768"], "expected INxOUT such as 768x3072, got '0x768'"),
        (["tune", "--granularities", "block(16)"], "wrong number of arguments"),
        (["tune", "--granularities", "block(0,1)"], "such as block(16,1)"),
        (["tune", "--shapes", "768x"], "expected INxOUT such as 768x3072, got '768x'"),
    ],
)
def test_a_wrong_argument_is_told_what_was_expected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--densities", "0"], "--densities: 0.0"),
        (["--tokens", "0"], "--tokens: 0"),
        (["--shapes", "2x2", "--granularities", "nm(2,4,1)"], "--shapes: 2x2"),
    ],
)
def test_what_cannot_be_measured_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_kernel_is_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    (cpu,) = (backend for backend in plan.backends() if backend.name == "cpu")
    right = type(cpu).linear_by
    monkeypatch.setattr(type(cpu), "linear_by", lambda *arguments: right(*arguments) + 1)
    with pytest.raises(RuntimeError, match="please report this fault of the kernel"):
        main(TINY)
    assert kept() == []


def measured(seconds: dict[str, float], ratios: dict[str, list[float]]) -> str:
    """The kernel that these times decide for, where the first line is ``a``."""
    run = object.__new__(tune._Run)
    run.first, run.best, run.ratios = "a", seconds, ratios
    return run.fastest()


def test_another_kernel_must_win_clearly_and_every_time() -> None:
    assert measured({"a": 1.0, "b": 0.9}, {"a": [1.0, 1.0], "b": [1.1, 1.2]}) == "b"
    assert measured({"a": 1.0, "b": 0.99}, {"a": [1.0, 1.0], "b": [1.1, 1.2]}) == "a"
    assert measured({"a": 1.0, "b": 0.9}, {"a": [1.0, 1.0], "b": [1.2, 0.95]}) == "a"


def test_the_summary_counts_gains() -> None:
    same = Entry("block(16,1)", "float32", 96, 64, 0.5, 24, 1, "a", 1.0, "a", 1.0, 1.1)
    other = Entry("block(16,1)", "float32", 96, 64, 0.5, 25, 1, "b", 1.0, "a", 4.0, 0.7)
    found = tune_verb.summarize([same, other])
    assert found == pytest.approx({"cases": 2, "changed": 1, "gain": 4, "gain_overall": 2, "model_error": 0.2})
    assert tune_verb.summarize([])["gain"] == 1


# ---- plan ----------------------------------------------------------------------------------------


def test_plan_says_what_runs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("plan", "block(16,1)", "64x96", "--tokens", "24", "--density", "0.5")
    untuned = output(capsys, *arguments)
    assert "the first line of the kernel table" in untuned and "no rates of this machine" in untuned
    output(capsys, *TINY)
    tuned = output(capsys, *arguments)
    assert "measured here" in tuned and "Predicted, on one thread" in tuned
    found = json.loads(output(capsys, *arguments, "--json"))
    assert found["why"] == "measured" and found["kernel"] in found["costs"] and found["entry"]["tokens"] == 24
    output(capsys, "tune", "--shapes", "64x96", "--granularities", "block(16,1)", "--tokens", "577")
    found = json.loads(output(capsys, *arguments[:3], "--tokens", "577", "--density", "0.5", "--json"))
    assert found["why"] == "measured" and found["entry"]["tokens"] == 577
    main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)["plan"]
    assert facts["tuned"] and facts["cases"] == 6 and facts["trouble"] is None


def test_plan_knows_of_weights_without_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "plan", "channel()", "64x96").startswith("kept_rows: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nm(2,4,1)", "2x2"], "more than the weight [2, 2] has"),
        (["block(16,1)", "64x96", "--density", "2"], "expected a density in (0, 1]"),
    ],
)
def test_plan_refuses_what_does_not_fit(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err
