"""``inspect``: each stage's facts against what they are told from, and what it says to wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekern as sk
from sparsekern import plan
from sparsekern.backends import CpuBackend
from sparsekern.cli import main as cli
from sparsekern.cli.arguments import granularity_of
from sparsekern.cli.inspect import STAGES
from sparsekern.inspect import stages, subject
from sparsekern.listings import Code, Listing, UnreadableError

LISTING = Listing("main loop", tuple(f"{i}  nop" for i in range(50)), {"instructions": 50}, {"scalar": 50})
CODE = Code("some_kernel", "avx2", "_C.so", (LISTING,), ("a note",))


def shown(capsys: pytest.CaptureFixture[str], *line: str, code: int = 0) -> str:
    assert cli.main(["inspect", *line]) == code
    return capsys.readouterr().out


def facts(capsys: pytest.CaptureFixture[str], *line: str, code: int = 0) -> dict[str, Any]:
    return json.loads(shown(capsys, *line, "--json", code=code))


def refusal(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert cli.main(["inspect", *line]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two sparse layers and a dense one."""
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 32))
    model[0] = sk.SparseLinear.from_dense(model[0], sk.Block(16, 1), 0.5)
    model[2] = sk.SparseLinear.from_dense(model[2], sk.NM(2, 4))
    sk.save(model, tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    return tmp_path / "model.safetensors"


# ---- facts ---------------------------------------------------------------------------------------


def test_weight_of_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, str(file), "--stage", "weight")
    state = torch.load(file.with_name("state.pt"))
    parts = {name: state[f"0.{name}"] for name in ("values", "columns", "offsets")}
    weight = sk.PackedWeight(sk.Block(16, 1), (64, 96), parts).to_dense().double()
    assert found["layer"] == "0" and str(file) in found["origin"]
    stage = found["weight"]
    assert stage["shape"] == [64, 96] and stage["dtype"] == "float32"
    assert stage["zeros"] == pytest.approx(0.5) and sum(stage["histogram"]) == 64 * 96 // 2
    assert stage["mean"] == pytest.approx(float(weight.mean()))
    assert stage["std"] == pytest.approx(float((weight**2).mean() - weight.mean() ** 2) ** 0.5)
    assert stage["abs_max"] == pytest.approx(float(weight.abs().max()))


@pytest.mark.parametrize(("layer", "label"), [("0", "16x1"), ("2", "2:4")])
def test_a_layer_of_a_file_by_name(file: Path, layer: str, label: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, str(file), "--layer", layer, "--stage", "mask", "--stage", "layout")
    assert found["layer"] == layer and found["mask"]["label"] == label and found["mask"]["density"] == 0.5
    assert found["layout"]["law"] is True


def test_a_model_that_is_one_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = sk.SparseLinear.from_dense(torch.nn.Linear(64, 64), sk.Unstructured(), 0.9)
    sk.save(layer, tmp_path / "layer.safetensors")
    found = facts(capsys, str(tmp_path / "layer.safetensors"), "--stage", "mask")
    assert found["layer"] == "the model" and found["mask"]["kept_groups"] == layer.packed.values.numel()


def test_shared_tensors_are_read_under_their_other_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Module()
    model.a = model.b = sk.SparseLinear.from_dense(torch.nn.Linear(64, 64), sk.Block(8, 1), 0.5)
    sk.save(model, tmp_path / "tied.safetensors")
    ab = [facts(capsys, str(tmp_path / "tied.safetensors"), "--layer", n, "--stage", "weight") for n in "ab"]
    assert ab[0]["weight"] == ab[1]["weight"] and ab[1]["layer"] == "b"


def test_mask_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    stage = facts(capsys, "70x100", "--granularity", "8x2", "--density", "0.3", "--seed", "3", "--stage", "mask")[
        "mask"
    ]
    torch.manual_seed(3)
    weight = torch.randn(100, 70, generator=torch.Generator().manual_seed(3))
    mask = sk.make_mask(weight, sk.Block(8, 2), 0.7)
    padded = torch.nn.functional.pad(mask, (0, 0, 0, 4)).view(13, 8, 35, 2)
    kept = padded.any(3).any(1)
    assert (stage["groups"], stage["kept_groups"], stage["group_rows"]) == (13 * 35, int(kept.sum()), 13)
    assert stage["kept_in_row"] == [int(f(kept.sum(1))) for f in (torch.min, torch.median, torch.max)]
    assert stage["density"] == pytest.approx(float(mask.double().mean()))
    assert stage["magnitude"] == pytest.approx(float(weight.abs()[mask].sum() / weight.abs().sum()), rel=1e-5)
    assert len(stage["map"]) == 24 and {len(row) for row in stage["map"]} == {64}


def test_groups_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    stage = facts(capsys, "64x48", "--granularity", "channel", "--stage", "mask")["mask"]
    assert (stage["groups"], stage["kept_groups"]) == (48, 12)
    assert stage["group_rows"] is None and stage["kept_in_row"] is None


def test_layout_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["70x100", "--granularity", "16x1", "--dtype", "bfloat16", "--density", "0.8"]
    found = facts(capsys, *line, "--stage", "mask", "--stage", "layout")
    stage, blocks = found["layout"], found["mask"]["kept_groups"]
    assert blocks == round(7 * 70 * 0.8)
    sizes = {part["name"]: part["bytes"] for part in stage["parts"]}
    assert sizes == {"values": blocks * 16 * 2, "columns": blocks * 2, "offsets": 8 * 4}
    assert stage["bytes"] == sum(sizes.values()) and stage["dense_bytes"] == 100 * 70 * 2
    # The last block row has 4 rows of 16.
    assert stage["padding"] == 16 * blocks - round(found["mask"]["density"] * 7000) > 0


def test_the_law_is_really_checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject.at_random((64, 64), sk.Block(16, 1), 0.5, torch.float32, 0)
    assert stages.keeps_law(made)
    made.packed.values[3, 0, 5] += 1
    assert not stages.keeps_law(made)
    monkeypatch.setattr(stages, "keeps_law", lambda subject: False)
    assert "BROKEN" in shown(capsys, "64x64", "--stage", "layout", code=1)


@pytest.mark.needs_native
def test_plan_as_the_plan_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    stage = facts(capsys, "768x3072", "--tokens", "24", "--stage", "plan")["plan"]
    request = plan.Request(sk.Block(16, 1), (3072, 768), torch.float32, "cpu")
    assert stage["kernel"] == plan.kernel_name(request, 3072 * 768 // 4, 24)
    assert (stage["tokens"], stage["backend"], stage["why"], stage["costs"]) == (24, "cpu", "table", {})
    assert stage["kernel"] in stage["candidates"]


@pytest.mark.needs_native
def test_plan_with_rates_and_measurements(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    request = plan.Request(sk.Block(16, 1), (3072, 768), torch.float32, "cpu")
    first, *_, last = [record.name for record in plan.select(request).candidates(request)]
    entry = plan.Entry("block(16,1)", "float32", 3072, 768, 0.25, 128, 1, last, 5e-4, first, 6e-4, 0.0)
    costs = {first: plan.Cost(9e-4, "loads"), last: plan.Cost(3e-4, "memory")}
    chosen = plan.Choice(last, "measured", costs, entry)
    monkeypatch.setattr(plan.HostPlan, "choose", lambda *_: chosen)
    printed = shown(capsys, "768x3072", "--stage", "plan")
    assert f"{last}, measured here" in printed and "measured: 500 us with 128 tokens" in printed
    assert printed.index(f"\n{last} ") < printed.index(f"\n{first} ")  # the cheapest first
    stage = facts(capsys, "768x3072", "--stage", "plan")["plan"]
    assert stage["measured"]["kernel"] == last and stage["costs"][first] == [pytest.approx(900), "loads"]


def test_refusals_have_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "64x64", "--dtype", "float16", "--stage", "plan", "--stage", "code")
    assert found["plan"]["backend"] == "reference" and found["plan"]["refusals"]["cpu"]
    assert found["code"]["code"] is None and "PyTorch multiplies" in found["code"]["unavailable"]


# ---- code ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the CPU back end is asked for code, and answers with ``CODE``."""
    questions: list[tuple[Any, ...]] = []

    def code(self: CpuBackend, *question: Any) -> Code:
        questions.append(question)
        return CODE

    monkeypatch.setattr(CpuBackend, "code", code)
    return questions


@pytest.mark.needs_native
def test_code_is_that_of_the_chosen_kernel(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "768x3072", "--tokens", "7", "--stage", "plan", "--stage", "code")
    request = plan.Request(sk.Block(16, 1), (3072, 768), torch.float32, "cpu")
    assert asked == [(found["plan"]["kernel"], request, 7, None)]
    assert found["code"]["code"]["listings"][0]["mix"] == {"scalar": 50}
    assert found["code"]["code"]["notes"] == ["a note"]


@pytest.mark.needs_native
@pytest.mark.parametrize(("lines", "shows"), [("40", 40), ("3", 3), ("0", 50)])
def test_long_listings_are_cut(lines: str, shows: int, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown(capsys, "64x64", "--stage", "code", "--lines", lines)
    assert len(re.findall(r"^\d+  nop$", printed, re.MULTILINE)) == shows
    assert (f"... {50 - shows} more lines" in printed) is (shows < 50)


@pytest.mark.needs_native
def test_code_that_cannot_be_read_is_a_failure_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsekern.listings import tools, x86

    x86.functions.cache_clear()
    monkeypatch.setattr(tools, "find", lambda tool: None)
    printed = shown(capsys, "64x64", "--stage", "plan", "--stage", "code", code=1)
    assert "needs objdump, which is not there: install binutils" in printed and "-- plan" in printed


def test_code_for_a_gpu_is_asked_of_every_back_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in plan.backends():
        monkeypatch.setattr(type(backend), "code", lambda *_: None)
    found = facts(capsys, "64x64", "--stage", "code", "--target", "sm_90", code=1)
    assert "no back end has compiled code for sm_90" in found["code"]["unavailable"]

    def code(self: CpuBackend, kernel: str, request: plan.Request, tokens: int, target: str | None) -> Code:
        # It refuses weights on a GPU, so the plan cannot have chosen a kernel of it.
        assert (kernel, request.device, target) == ("", "cuda", "sm_90a")
        return CODE

    monkeypatch.setattr(CpuBackend, "code", code)
    assert facts(capsys, "64x64", "--stage", "code", "--target", "sm_90a")["code"]["code"]["kernel"] == "some_kernel"


def test_a_back_end_without_code_says_none() -> None:
    request = plan.Request(sk.Channel(), (64, 64), torch.float32, "cpu")
    assert plan.select(request).code("kept_rows", request, 1, None) is None


# ---- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_the_whole_text_fits(
    columns: int, asked: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    printed = shown(capsys, "768x3072", "--granularity", "2:4")
    assert re.findall(r"^-- (\w+) -+$", printed, re.MULTILINE) == list(STAGES)
    assert max(map(len, printed.splitlines())) <= columns
    assert "random normal numbers (seed 0)" in printed and "unpack(pack(w, mask)) == w * mask: holds" in printed
    assert len(re.findall(r"^    \|.{64}\|$", printed, re.MULTILINE)) == 24


def test_pictures_are_ascii_where_the_output_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert cli.main(["inspect", "64x64", "--stage", "weight", "--stage", "mask", "--stage", "layout"]) == 0
    output.seek(0)
    assert "#" in output.read()


# ---- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["nothing"], r"expected a file of sk\.save, or INxOUT such as 768x3072, got 'nothing'"),
        (["8x8"], r"a 16x1 block is larger than the weight \[8, 8\]; choose a block of at most 8x8"),
        (["64x64", "--density", "0"], r"--density: expected a share in \(0, 1\], got 0"),
        (["64x64", "--tokens", "0"], r"--tokens: expected a token or more, got 0"),
        (["64x64", "--lines", "-1"], r"--lines: expected a number of lines, or 0 for all, got -1"),
        (["64x64", "--target", "h100"], r"--target: expected an architecture such as sm_80 or sm_90a, got 'h100'"),
        (["64x64", "--layer", "0"], r"--layer: expected a file with it, got 64x64"),
        (["64x64", "--granularity", "2:4", "--density", "0.3"], r"density: 2:4 keeps 0\.5, got 0\.3; leave it out"),
    ],
)
def test_wrong_input_is_named(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(f"^sparsekern inspect: .*{said}", refusal(capsys, *line))


def test_wrong_files_are_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a sparse layer '1', found '0', '2'" in refusal(capsys, str(file), "--layer", "1")
    assert f"--density, --dtype: a file says that itself; expected INxOUT with it, got {file}" in refusal(
        capsys, str(file), "--density", "0.5", "--dtype", "bfloat16"
    )
    assert "Is a directory" in refusal(capsys, str(file.parent))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "expected a whole safetensors file" in refusal(capsys, str(file))


@pytest.mark.parametrize(
    ("text", "granularity"),
    [
        ("16x1", sk.Block(16, 1)),
        ("2:4", sk.NM(2, 4)),
        ("2:4x16", sk.NM(2, 4, 16)),
        ("unstructured", sk.Unstructured()),
        ("channel", sk.Channel()),
        ("block(4,2)", sk.Block(4, 2)),
    ],
)
def test_granularities_by_label(text: str, granularity: sk.Block) -> None:
    assert granularity_of(text) == granularity == granularity_of(granularity.spec)


@pytest.mark.parametrize("text", ["16", "16x", "x1", "2:4:8", "7x0", "granite", "block(16,1"])
def test_what_is_no_granularity(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["inspect", "64x64", "--granularity", text])
    assert f"argument --granularity: {'' if text == '7x0' else 'unknown granularity'}" in capsys.readouterr().err


def test_an_unreadable_error_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Code:
        raise UnreadableError("needs magic, which is not there: install it")

    for backend in plan.backends():
        monkeypatch.setattr(type(backend), "code", fail)
    assert "needs magic" in shown(capsys, "64x64", "--stage", "code", code=1)


def test_a_dtype_that_only_gpus_have_kernels_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "64x64", "--granularity", "16x16", "--dtype", "float16", "--stage", "plan"]) == 0
    printed = capsys.readouterr().out
    assert "cpu: refuses, no kernel for torch.float16" in printed and "reference: serves it" in printed


def test_a_convolution_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3))
    sk.sparsify_(model, sk.Sparse(sk.Block(8, 1), 0.5))
    sk.save(model, tmp_path / "cnn")
    assert cli.main(["inspect", str(tmp_path / "cnn"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["weight"]["shape"] == [16, 72] and facts["layout"]["law"] and facts["mask"]["density"] == 0.5
    request = plan.ConvRequest(sk.Block(8, 1), (16, 8, 3, 3), 1, torch.float32, "cpu")
    assert facts["plan"]["kernel"] == plan.conv_kernel_name(request)
    assert cli.main(["inspect", str(tmp_path / "cnn")]) == 0
    assert "16 outputs x 72 inputs" in capsys.readouterr().out
