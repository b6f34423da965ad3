"""Files of models with convolutions, whole and damaged, and of models whose BatchNorm was folded."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.io.layer import read_layer
from sparsekern.nn.fold import FoldedBatchNorm

Content = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a file and its header."""


def architecture() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 16, (3, 2), padding=1, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1), nn.Flatten(),
        nn.Linear(8 * 36, 8),
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 4, 6, 5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = architecture()
    config = {"0": sk.Sparse(sk.Block(8, 1), 0.5), "2": sk.Sparse(sk.NM(2, 4)), "*": None}
    sk.sparsify_(model, config, fold_batch_norm=True)
    sk.save(model, tmp_path / "good")
    return tmp_path / "good"


def rewritten(path: Path, edit: Callable[[Content], object]) -> Path:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = json.loads(file.metadata()["sparsekern"])
    edit((tensors, header))
    other = path.with_name("edited")
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, other, {"sparsekern": json.dumps(header)})
    return other


def test_a_folded_model_loads_into_one_that_was_never_folded(file: Path) -> None:
    first, second, x = architecture(), architecture(), images()
    bias = first[2].bias
    assert sk.load_(first, file) == sk.load_(second, file) == ["0", "2"]
    assert torch.equal(first(x), second(x))
    assert isinstance(first[1], FoldedBatchNorm) and first[0].bias is not None and first[2].bias is bias
    assert sk.load_(first, file) == ["0", "2"], "once more, into the folded one"
    assert first[0].padding == (1, 1) and first[0].kernel_size == (3, 2)


@pytest.mark.parametrize(
    "edit, text",
    [
        (
            lambda c: c[1].pop("folded"),
            r"1: expected a BatchNorm folded into 0 as in the model, found none that is fol",
        ),
        (
            lambda c: c[1].update(folded={}),
            r"1: expected a BatchNorm folded into 0 as in the model, found none that is",
        ),
        (lambda c: c[1].update(folded={"1": "2"}), r"1: expected .* folded into 0 .*, found one folded into 2"),
        (lambda c: c[1].update(folded={"1": "9"}), r"1: expected .* folded into 0 .*, found one folded into 9"),
        (lambda c: c[1].update(folded={"1": "0", "9": "0"}), r"9: expected a BatchNorm2d .* found NoneType"),
    ],
)
def test_what_a_model_has_folded_must_be_so_in_the_file(
    file: Path, edit: Callable[[Content], object], text: str
) -> None:
    model = architecture()
    sk.load_(model, file)
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=text):
        sk.load_(model, rewritten(file, edit))
    assert list(model.modules()) == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_file_of_the_unfolded_model_says_what_is_folded(file: Path, tmp_path: Path) -> None:
    model = architecture()
    sk.load_(model, file)
    sk.save(architecture(), tmp_path / "unfolded")
    with pytest.raises(ValueError, match=r"1: expected a BatchNorm folded into 0 as in the model, found none that is"):
        sk.load_(model, tmp_path / "unfolded")


def test_activations_of_convolutions_are_stored(tmp_path: Path) -> None:
    conv = nn.Conv2d(4, 16, 3)
    packed = sk.SparseConv2d.from_dense(conv, sk.Block(4, 1), 0.5).packed
    model, again = nn.Sequential(sk.SparseConv2d(packed, conv.bias, activation="hardswish")), nn.Sequential(conv)
    sk.save(model, tmp_path / "model")
    sk.load_(again, tmp_path / "model")
    assert again[0].activation == "hardswish"
    x = images()
    assert torch.equal(again(x), model(x))


def test_reading_one_layer(file: Path) -> None:
    stored = read_layer(file, "0")
    assert stored.packed.dense_shape == (16, 4, 3, 2) and stored.packed.verified


def layer(name: str, **fields: Any) -> Callable[[Content], None]:
    return lambda content: content[1]["layers"][name].update(fields)


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Content], None]:
    return lambda content: content[0].update({name: change(content[0][name])})


@pytest.mark.parametrize(
    "edit, text",
    [
        (layer("0", shape=[16, 24]), r"0: expected shape \[16, 4, 3, 2\] as in the model, found \[16, 24\]"),
        (layer("0", shape=[16, 4, 2, 3]), r"0: expected shape \[16, 4, 3, 2\] .*found \[16, 4, 2, 3\]"),
        (layer("0", shape=[16, 4, 6]), r"0: expected a shape \[out, in\] of two integers > 0, or"),
        (layer("0", shape=[16, 4, 3, 0]), r"0: expected a shape"),
        (layer("2", shape=[8, 16]), r"2: expected shape \[8, 16, 1, 1\] as in the model, found \[8, 16\]"),
        (layer("0", activation="tanh"), r"0: expected an activation of none, relu, .*hardswish, found 'tanh'"),
        (layer("0", granularity="block(4,1)"), r"0\.values: expected shape \[blocks, 1, 4\]"),
        (replaced("0.columns", lambda t: t.flip(0)), r"0\.columns: expected ascending numbers"),
        (replaced("0.columns", lambda t: torch.full_like(t, 99)), r"0\.columns: expected numbers in \[0, 24\)"),
        (replaced("0.offsets", lambda t: t + 1), r"0\.offsets: expected to rise"),
        (replaced("0.bias", lambda t: t[:-1]), r"0\.bias: expected torch.float32 \[16\]"),
        (lambda c: c[0].pop("0.bias"), r"found no 0\.bias"),
        (lambda c: c[1].pop("folded"), r"expected the tensors of the model, found no 1\.bias"),
        (lambda c: c[1].update(folded={"1": 0}), r"folded: expected the name of a convolution for '1', found 0"),
        (lambda c: c[1].update(folded=["1"]), r"metadata.folded: expected a JSON object"),
        (lambda c: c[1].update(folded={"4": "0"}), r"4: expected a BatchNorm2d without hooks .* found Linear"),
        (lambda c: c[1].update(folded={"1": "4"}), r"4: expected a Conv2d without hooks in the model, found Linear"),
        (lambda c: c[1].update(folded={"1": "2", "9": "0"}), r"9: expected a BatchNorm2d"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_changes_nothing(
    file: Path, edit: Callable[[Content], object], text: str
) -> None:
    path = rewritten(file, edit)
    for prepare in (lambda m: None, lambda m: sk.sparsify_(m, {"0": sk.Sparse(sk.Block(8, 1), 0.25)})):
        model = architecture()
        prepare(model)
        modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=text) as caught:
            sk.load_(model, path)
        assert str(caught.value).startswith(f"{path}: ")
        assert list(model.modules()) == modules and list(model.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_file_for_a_linear_layer_does_not_fit_a_convolution(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    sk.sparsify_(model, sk.Sparse(sk.Block(8, 1), 0.5))
    sk.save(model, tmp_path / "linear")
    with pytest.raises(ValueError, match=r"0: expected shape \[8, 16, 1, 1\] as in the model, found \[8, 16\]"):
        sk.load_(nn.Sequential(nn.Conv2d(16, 8, 1)), tmp_path / "linear")


def backbone() -> nn.Module:
    """Convolutions with BatchNorm within a larger model."""
    conv, norm = nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32)
    return nn.Sequential(nn.Sequential(conv, norm, nn.ReLU()), nn.Flatten()).eval()


@pytest.mark.parametrize("saved", ["what was folded", "what holds it", "a part of it", "a part elsewhere"])
def test_folded_models_are_saved_as_parts_and_in_larger_ones(tmp_path: Path, saved: str) -> None:
    """The names of what was folded are those in the model that is saved."""
    model, fresh, path = backbone(), backbone(), tmp_path / "model.safetensors"
    folded_at = model[0] if saved == "what holds it" else model
    sk.sparsify_(folded_at, sk.Sparse(sk.Block(16, 1), 0.5), fold_batch_norm=True)
    x, target = torch.randn(1, 16, 5, 5), model
    expected = model(x)
    if saved == "a part of it":
        target, fresh, expected = model[0], fresh[0], model[0](x)
    if saved == "a part elsewhere":
        target, fresh = nn.Sequential(nn.ReLU(), model[0]), nn.Sequential(nn.ReLU(), fresh[0])
        expected = target(x)
    sk.save(target, path)
    sk.load_(fresh, path)
    torch.testing.assert_close(fresh(x), expected)


def test_a_folded_batch_norm_without_its_convolution_is_not_saved(tmp_path: Path) -> None:
    model = backbone()
    sk.sparsify_(model, sk.Sparse(sk.Block(16, 1), 0.5), fold_batch_norm=True)
    apart = nn.Sequential(model[0][1])
    with pytest.raises(
        ValueError, match=r"0: expected the BatchNorm 0\.1 beside the convolution 0\.0, .*; save the model"
    ):
        sk.save(apart, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
