"""``load_`` refuses every damaged or foreign file with a reason, and leaves the model as it was."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import sparsekern as sk

Content = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a file and its header."""


def architecture() -> nn.Module:
    model = nn.Sequential(nn.Linear(24, 40), nn.Conv1d(40, 40, 1), nn.Linear(40, 24, bias=False), nn.Linear(24, 24))
    return nn.ModuleDict({"a": model, "tied": model[3]}).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = architecture()
    sk.sparsify_(model, {"a.0": sk.Sparse(sk.Block(8, 1), 0.5), "a.2": sk.Sparse(sk.Channel(), 0.5), "*": None})
    path = tmp_path_factory.mktemp("damage") / "good.safetensors"
    sk.save(model, path)
    return path


def read(path: Path) -> Content:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["sparsekern"])


def write(path: Path, content: Content) -> None:
    tensors, header = content
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path, {"sparsekern": json.dumps(header)})


def refuses(path: Path, text: str = "") -> str:
    """Load a file into a dense and into a sparse model; both must refuse it and stay as they were."""
    message = ""
    for prepare in (lambda m: None, lambda m: sk.sparsify_(m, {"a.0": sk.Sparse(sk.Block(8, 1), 0.25)})):
        model = architecture()
        prepare(model)
        modules = [(id(m), m.training) for m in model.modules()]
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=text) as caught:
            sk.load_(model, path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert [(id(m), m.training) for m in model.modules()] == modules
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return message


def test_the_undamaged_file_loads(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", read(file))
    assert sk.load_(architecture(), tmp_path / "again") == ["a.0", "a.2"]


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Content], None]:
    def edit(content: Content) -> None:
        content[0][name] = change(content[0][name])

    return edit


def without(name: str) -> Callable[[Content], None]:
    return lambda content: content[0].pop(name)


def layer(name: str, **fields: Any) -> Callable[[Content], None]:
    def edit(content: Content) -> None:
        content[1]["layers"].setdefault(name, {"granularity": "block(8,1)", "shape": [40, 24], "activation": "none"})
        content[1]["layers"][name].update(fields)

    return edit


def header(**fields: Any) -> Callable[[Content], None]:
    return lambda content: content[1].update(fields)


def element(place: int, value: float) -> Callable[[Tensor], Tensor]:
    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t.view(-1)[place] = value
        return t

    return change


@pytest.mark.parametrize(
    "edit, text",
    [
        # Tensors of a sparse layer.
        (tensor("a.0.columns", element(-2, 200)), r"a\.0\.columns: expected numbers in \[0, 24\), got \d+ to 200"),
        (tensor("a.0.columns", element(1, 255)), r"a\.0\.columns: expected numbers in \[0, 24\)"),
        (tensor("a.0.columns", lambda t: t.flip(0)), r"a\.0\.columns: expected ascending numbers"),
        (tensor("a.0.columns", lambda t: t[:-1]), r"a\.0\.columns: expected torch.uint8 of shape \[60, 2\]"),
        (tensor("a.0.columns", lambda t: t.to(torch.int32)), r"a\.0\.columns: expected torch.uint8"),
        (tensor("a.0.offsets", element(2, -5)), r"a\.0\.offsets: expected to rise from 0 to 60 .* smallest step -"),
        (tensor("a.0.offsets", element(-1, 61)), r"a\.0\.offsets: expected to rise from 0 to 60"),
        (tensor("a.0.offsets", lambda t: t[1:]), r"a\.0\.offsets: expected int32 of shape \[6\]"),
        (tensor("a.0.offsets", lambda t: t.long()), r"a\.0\.offsets: expected int32"),
        (tensor("a.0.values", lambda t: t[:-1]), r"a\.0\.columns: expected torch.uint8 of shape \[59, 2\]"),
        (tensor("a.0.values", element(7, float("nan"))), r"a\.0: the packed values hold NaN or infinity"),
        (tensor("a.0.values", lambda t: t.double()), r"a\.0: expected torch.float32 as in .* found torch.float64"),
        (tensor("a.0.values", lambda t: t.int()), r"a\.0\.values: expected a floating dtype"),
        (tensor("a.2.channels", element(0, -1)), r"a\.2\.channels: expected numbers in \[0, 24\), got -1"),
        (tensor("a.2.channels", element(-1, 24)), r"a\.2\.channels: expected numbers in \[0, 24\)"),
        (without("a.0.offsets"), r"a\.0: expected a tensor 'a\.0\.offsets', found none"),
        # Other tensors.
        (tensor("a.0.bias", lambda t: t[:-1]), r"a\.0\.bias: expected torch.float32 \[40\] .* found .* \[39\]"),
        (tensor("a.1.weight", lambda t: t.half()), r"a\.1\.weight: expected torch.float32 .* found torch.float16"),
        (without("a.1.weight"), r"expected the tensors of the model, found no a\.1\.weight"),
        (without("a.3.weight"), r"metadata.shared: 'tied.weight' is said to be 'a.3.weight'"),
        (lambda c: c[0].update({"a.9.weight": torch.ones(1)}), r"found the unexpected a\.9\.weight"),
        (lambda c: c[0].update({"a.2.bias": torch.ones(24)}), r"found the unexpected a\.2\.bias"),
        # What the header says about layers.
        (layer("a.0", shape=[40, 23]), r"a\.0: expected shape \[40, 24\] as in the model, found \[40, 23\]"),
        (layer("a.0", shape=[2**62, 2**62]), r"a\.0: expected shape \[40, 24\]"),
        (layer("a.0", shape=[10**30, 24]), r"a\.0: expected shape \[40, 24\]"),
        (layer("a.0", shape=[-40, 24]), r"a\.0: expected a shape \[out, in\] of two integers > 0, .*\[-40, 24\]"),
        (layer("a.0", shape=[40.0, 24]), r"a\.0: expected a shape"),
        (layer("a.0", shape=[True, 24]), r"a\.0: expected a shape"),
        (layer("a.0", shape=[40]), r"a\.0: expected a shape"),
        (layer("a.0", shape="40x24"), r"a\.0: expected a shape"),
        (layer("a.0", granularity="block(4,1)"), r"a\.0\.values: expected shape \[blocks, 1, 4\], got \[60, 1, 8\]"),
        (layer("a.0", granularity="block(8,0)"), r"a\.0: Block\(rows, cols\) takes two integers >= 1"),
        (layer("a.0", granularity="block(99999999999999999999,1)"), r"a\.0: a 9+x1 block is larger than the weight"),
        (layer("a.0", granularity="hexagon(3)"), r"a\.0: unknown granularity 'hexagon\(3\)'"),
        (layer("a.0", granularity=8), r"a\.0: expected a granularity such as .* found 8"),
        (layer("a.0", granularity="unstructured()"), r"a\.0\.values: expected one dimension"),
        (layer("a.0", activation="tanh"), r"a\.0: expected an activation of none, relu, gelu, silu, found 'tanh'"),
        (layer("a.0", activation=["relu"]), r"a\.0: expected an activation"),
        (layer("a.1"), r"a\.1: expected a Linear or Conv2d layer in the model, found a Conv1d"),
        (layer("a"), r"a: expected a Linear or Conv2d layer in the model, found a Sequential"),
        (layer("b.0"), r"b\.0: expected a Linear or Conv2d layer in the model, found none of that name"),
        (layer("a.3", shape=[24, 24]), r"tied: expected the same as a\.3, which is one layer with it, found None"),
        (lambda c: c[1]["layers"].pop("a.0"), r"expected the tensors of the model, found no a\.0\.weight"),
        # The header itself.
        (header(version=2), "metadata: expected format version 1, found 2"),
        (header(version=None), "expected format version 1, found None"),
        (header(layers=[]), r"metadata\.layers: expected a JSON object, found list"),
        (header(layers={"a.0": None}), r"metadata of layer 'a\.0': expected a JSON object, found NoneType"),
        (header(shared=None), r"metadata\.shared: expected a JSON object, found NoneType"),
        (header(shared={"tied.weight": 3}), r"metadata\.shared: expected the name of a tensor .* found 3"),
        (header(shared={"tied.weight": "a.1.weight", "tied.bias": "a.3.bias"}),
         r"tied\.weight: expected torch.float32 \[24, 24\]"),
        (header(shared={"a.0.bias": "a.3.bias"}),
         r"'a\.0\.bias' is said to be 'a\.3\.bias'; expected only the latter stored"),
        (header(shared={}), r"expected the tensors of the model, found no tied\.bias, tied\.weight"),
    ],
)  # fmt: skip
def test_an_edited_file_is_refused(edit: Callable[[Content], Any], text: str, file: Path, tmp_path: Path) -> None:
    content = read(file)
    edit(content)
    write(tmp_path / "edited", content)
    refuses(tmp_path / "edited", text)


def test_different_tensors_for_a_tie_are_refused(file: Path, tmp_path: Path) -> None:
    tensors, head = read(file)
    for name in ("weight", "bias"):
        tensors[f"tied.{name}"] = tensors[f"a.3.{name}"].clone()
    head["shared"] = {}
    write(tmp_path / "untied", (tensors, head))
    assert sk.load_(architecture(), tmp_path / "untied") == ["a.0", "a.2"]
    tensors["tied.weight"][0, 0] += 1
    write(tmp_path / "untied", (tensors, head))
    refuses(
        tmp_path / "untied", r"tied\.weight: expected the same tensor as a\.3\.weight, as in the model, found another"
    )


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"sparsekern": ""}, {"sparsekern": "{"},
                                      {"sparsekern": "[1]"}, {"sparsekern": "[" * 10_000}])  # fmt: skip
def test_a_header_that_is_none(metadata: dict[str, str] | None, file: Path, tmp_path: Path) -> None:
    save_file(read(file)[0], tmp_path / "headless", metadata)
    refuses(tmp_path / "headless", "metadata: expected")


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    for content in (b"", b"\0", b"hello, this is no model", b"\xff" * 64, b"\0" * 4096):
        (tmp_path / "other").write_bytes(content)
        refuses(tmp_path / "other", "expected a whole safetensors file, but")
    with pytest.raises(FileNotFoundError):
        sk.load_(architecture(), tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        sk.load_(architecture(), tmp_path)


def test_a_truncated_file_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for length in (
        0,
        7,
        8,
        9,
        header_end // 2,
        header_end - 1,
        header_end,
        header_end + 1,
        len(whole) // 2,
        len(whole) - 1,
    ):
        (tmp_path / "short").write_bytes(whole[:length])
        refuses(tmp_path / "short", "expected a whole safetensors file")
    (tmp_path / "long").write_bytes(whole + b"\0")
    refuses(tmp_path / "long", "expected a whole safetensors file")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject, file: Path, tmp_path: Path) -> None:
    """Bytes overwritten anywhere: a ValueError, or a model that verifies and runs (a weight changed its value)."""
    content = bytearray(file.read_bytes())
    in_header = data.draw(st.booleans())
    end = 8 + int.from_bytes(content[:8], "little") if in_header else len(content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged").write_bytes(content)
    model = architecture()
    state = copy.deepcopy(model.state_dict())
    try:
        sk.load_(model, tmp_path / "damaged")
    except ValueError:
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    else:
        for module in model.modules():
            if isinstance(module, sk.SparseLinear):
                module.packed.verify()
                assert module(torch.randn(2, module.in_features)).shape == (2, module.out_features)


# ---- models that do not fit ----------------------------------------------------------------------


def test_models_that_cannot_take_the_file(file: Path) -> None:
    def hooked() -> nn.Module:
        model = architecture()
        model["a"][0].register_forward_hook(lambda *args: None)
        return model

    def hooked_sparse() -> nn.Module:
        model = architecture()
        sk.sparsify_(model, {"a.0": sk.Sparse(sk.Block(4, 1), 0.5)})
        model["a"][0].register_forward_hook(lambda *args: None)
        return model

    for model, text in (
        (
            architecture().double(),
            r"a\.0: expected torch.float64 as in the model, found torch.float32; cast the model first",
        ),
        (architecture().to("meta"), r"the model is on the meta device; give it memory with model.to_empty"),
        (hooked(), r"a\.0: expected a layer that can be replaced, but it has hooks"),
        (hooked_sparse(), r"a\.0: has to be replaced, but has hooks, which would be lost"),
        (nn.Linear(24, 40), r"a\.0: expected a Linear or Conv2d layer in the model, found none of that name"),
    ):
        modules = [id(m) for m in model.modules()]
        with pytest.raises(ValueError, match=text):
            sk.load_(model, file)
        assert [id(m) for m in model.modules()] == modules


def test_a_model_whose_own_loading_fails_keeps_its_layers(file: Path) -> None:
    model = architecture()
    modules = [id(m) for m in model.modules()]

    def fail(*args: Any) -> None:
        raise RuntimeError("not today")

    model["a"][1].register_load_state_dict_pre_hook(fail)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(RuntimeError, match="not today"):
        sk.load_(model, file)
    assert [id(m) for m in model.modules()] == modules
    # Documented: what comes before the hook has been loaded, what comes after it has not.
    assert model["a"][0].bias.any() and not model["a"][3].weight.any()
