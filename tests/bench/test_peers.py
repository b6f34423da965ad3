"""Peers are compared fairly: wrong ones are not timed, absent and failing ones are told, others' processes too."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import sparsekern as sk

BENCH = Path(__file__).resolve().parents[2] / "bench"
HERE = Path(__file__).resolve().parent
SMALL = ("--shapes", "32x48", "--tokens", "8", "--threads", "1", "--densities", "0.5", "--rounds", "5")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/peers.py as a module; workers find the fake peers too."""
    for folder in (BENCH, HERE):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return importlib.import_module("peers")


@pytest.fixture
def fake(peers: ModuleType) -> ModuleType:
    return importlib.import_module("fake_peers")


@pytest.fixture
def worker(peers: ModuleType) -> ModuleType:
    return importlib.import_module("runtimes.worker")


def problem(tokens: int = 3, **facts: Any) -> Any:
    random = np.random.default_rng(0)
    weight, x = (random.standard_normal(shape).astype(np.float32) for shape in ((48, 32), (tokens, 32)))
    return sys.modules["runtimes.base"].Problem(weight, x, **facts)


def records(peers: ModuleType, contestants: list[Any], *, densities: tuple[float, ...] = (0.5,)) -> list[dict]:
    options = argparse.Namespace(
        threads=[1], tokens=[8], shapes=[(32, 48)], granularities=[sk.Block(16, 16)], densities=densities, rounds=5,
        seed=0,
    )  # fmt: skip
    return list(peers.cases(options, contestants))


@pytest.mark.needs_native
def test_a_case_records_everybody(peers: ModuleType, fake: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    everybody = [fake.Right(), fake.Wrong(), fake.OfAnotherShape(), fake.Failing(), fake.FailingLater(),
                 fake.Refusing(), fake.NotInstalled()]  # fmt: skip
    (record,) = records(peers, everybody)
    found = record["peers"]
    assert set(found) == {peer.name for peer in everybody}
    assert found["right"]["variant"] == "a variant" and found["right"]["t"]["n"] == found["right"]["ratio"]["n"] == 5
    assert found["wrong"]["error"].startswith("wrong result: relative error")
    assert "expected an output of shape (8, 48), found (1, 48)" in found["of_another_shape"]["error"]
    assert found["failing"]["error"] == "ValueError: cannot do this"
    assert found["failing_later"]["error"] == "ValueError: tired"
    assert found["refusing"]["refused"] == "not of this shape"
    assert "a_library_that_nobody_has" in found["not_installed"]["absent"]
    assert "--python not_installed=" in found["not_installed"]["absent"]
    assert all("t" not in found[name] for name in found if name != "right")
    assert record["env"]["peers"]["right"] == np.__version__ and "not_installed" not in record["env"]["peers"]
    assert record["t"]["n"] == 5 and record["error"] < 1e-5
    assert "not_installed: absent: " in capsys.readouterr().out
    line = peers.line(record)
    assert "x right" in line and "failing: ValueError: cannot do this" in line
    json.dumps(record)


@pytest.mark.needs_native
def test_dense_peers_get_the_weight_before_pruning(peers: ModuleType, fake: ModuleType) -> None:
    zeros: list[float] = []

    class Dense(fake.Right):
        name, kind = "dense", "dense"

        def prepare(self, problem: Any) -> Any:
            zeros.append(float((problem.weight == 0).mean()))
            return super().prepare(problem)

    assert len(records(peers, [Dense()], densities=(0.5, 0.1))) == 2
    assert zeros == [0, 0], "once for the problem and once for its neighbour, for all densities"


def test_slow_peers_keep_their_trial(peers: ModuleType, fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.0)
    local = fake.Right().enter(problem(), problem())
    results = peers.race({peers.OURS: local, "right": local}, 7, 0.0)
    assert results["right"][0].rounds == results["right"][1].rounds == peers.TRIAL_ROUNDS
    assert results[peers.OURS][0].rounds == 7


def test_a_worker_gives_what_the_peer_gives(fake: ModuleType, worker: ModuleType) -> None:
    remote = worker.Remote(fake.Right(), Path(sys.executable))
    try:
        assert remote.absent() is None and remote.version() == np.__version__
        for tokens in (3, 5):
            here = problem(tokens)
            contestant = remote.enter(here, here)
            assert contestant.variant == "a variant" and contestant.seconds() > 0
            np.testing.assert_allclose(contestant.output(), here.x @ here.weight.T, rtol=1e-5)
    finally:
        remote.close()
    assert remote._process is None


def test_aligned_arrays_start_a_cache_line(peers: ModuleType) -> None:
    base = sys.modules["runtimes.base"]
    for size in range(1, 20):
        array = np.arange(size, dtype=np.float32)[None]
        copy = base.aligned_copy(array)
        assert copy.ctypes.data % 64 == 0 and np.array_equal(copy, array)


def test_what_happens_in_a_worker_is_told(fake: ModuleType, worker: ModuleType) -> None:
    failing = worker.Remote(fake.Failing())
    dying = worker.Remote(fake.Dying())
    missing = worker.Remote(fake.NotInstalled())
    try:
        with pytest.raises(worker.WorkerError, match="ValueError: cannot do this"):
            failing.enter(problem(), problem())
        assert failing.absent() is None, "the worker lives on"
        with pytest.raises(worker.WorkerError, match="the worker ended with status 3"):
            dying.enter(problem(), problem())
        assert dying.absent() is None, "a new worker is started"
        assert "a_library_that_nobody_has" in missing.absent()
        assert missing.licence == "for reading only"
        assert "cannot run it" in worker.Remote(fake.Right(), Path("/no/such/python")).absent()
    finally:
        for remote in (failing, dying, missing):
            remote.close()


def test_blocks_that_a_format_lacks_are_refused(peers: ModuleType) -> None:
    bsr = [peer for peer in peers.PEERS if peer.name.endswith(("bsr", "bsr_linear", "bsr_matmul"))]
    assert len(bsr) == 4
    for peer in bsr:
        assert peer.refusal(problem(block=(16, 16))) is None
        assert "16x1" in peer.refusal(problem(block=(16, 1))) and "1x1" in peer.refusal(problem(block=(1, 1)))


def test_the_fastest_way_counts_and_one_that_raises_does_not(peers: ModuleType) -> None:
    base = sys.modules["runtimes.base"]
    numbers = np.zeros(1_000_000)
    ways = {"slow": lambda: np.sort(numbers + 1), "quick": lambda: None, "broken": lambda: 1 / 0}
    assert base.fastest(ways).variant == "quick"
    with pytest.raises(ZeroDivisionError):
        base.fastest({"broken": ways["broken"]})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The peers that the tests' own environment has, and one that needs another."""
    path = tmp_path_factory.mktemp("peers") / "peers.jsonl"
    wanted = ["torch_eager", "torch_bsr_matmul", "torch_csr_matmul", "scipy_bsr", "deepsparse"]
    ran = subprocess.run(
        [sys.executable, BENCH / "peers.py", *SMALL, "--granularities", "block(16,16)", "block(16,1)", "--peers",
         *wanted, "--python", "torch_csr_matmul=" + sys.executable, "--out", path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return path


@pytest.mark.needs_native
def test_real_peers_are_timed(results: Path) -> None:
    pytest.importorskip("scipy")
    square, column = (json.loads(line) for line in results.read_text().splitlines())
    assert square["case"]["granularity"] == "16x16" and column["case"]["granularity"] == "16x1"
    timed = {name for name, peer in square["peers"].items() if "t" in peer}
    assert timed >= {"torch_eager", "torch_bsr_matmul", "torch_csr_matmul", "scipy_bsr"}
    assert "refused" in column["peers"]["scipy_bsr"] and "t" in column["peers"]["torch_csr_matmul"]


@pytest.mark.needs_native
def test_the_summary_names_the_best_and_the_missing(results: Path) -> None:
    ran = subprocess.run([sys.executable, BENCH / "summarize_peers.py", results], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "### 8 tokens, 1 thread" in ran.stdout
    assert "| 16x16 | 0.5 | 1 |" in ran.stdout and "| torch_bsr_matmul |" in ran.stdout
    assert "torch_eager |" in ran.stdout.split("| peer |")[0]
    assert "refused: BSR of square blocks only, not 16x1 (1 of 2 cases)" in ran.stdout


def summary_record(**ratios: float) -> dict[str, Any]:
    kinds = {"eager": "dense", "runtime": "dense", "blocks": "sparse"}
    return {
        "case": {"granularity": "16x16", "density": 0.5, "threads": 1, "tokens": 128},
        "dense_equivalent_gflops": 200.0,
        "env": {"peers": dict.fromkeys(ratios, "1.0")},
        "peers": {
            name: {"kind": kinds[name], "t": {"median": ratio}, "ratio": {"median": ratio}}
            for name, ratio in ratios.items()
        },
    }


def test_the_best_peer_is_found_case_by_case(peers: ModuleType) -> None:
    summary = importlib.import_module("summarize_peers")
    records = [summary_record(eager=2.0, runtime=1.5, blocks=3.0), summary_record(eager=1.0, runtime=1.25)]
    _, _, row = summary.best(records)
    assert row == "| 16x16 | 0.5 | 2 | 200 | 1.25 (1.00) | runtime, eager | 3.00 (3.00) | blocks |"
    heads, rule, *rows = summary.each(records)
    assert rows == ["| eager | 1.50 (1.00) |", "| runtime | 1.38 (1.25) |", "| blocks | 3.00 (3.00) |"]
    assert heads.count("|") == rule.count("|") == rows[0].count("|")
