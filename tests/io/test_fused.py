"""Files of models in which layers have taken over activations: into any form of the architecture, whole and damaged."""

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
from sparsekern.nn.fuse import FusedActivation

HALF = sk.Sparse(sk.Block(16, 1), 0.5)


def architecture() -> nn.Module:
    """A convolution with BatchNorm and SiLU, and a linear layer with GELU: twice would not be once."""
    body = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.SiLU(inplace=True))
    head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 9, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU())
    return nn.Sequential(body, head).eval()


def images() -> Tensor:
    return torch.randn(2, 16, 5, 5)


def made(fuse: bool = True, config: Any = HALF, fold: bool = True) -> nn.Module:
    model = architecture()
    sk.sparsify_(model, config, fold_batch_norm=fold, fuse_activations=fuse)
    return model


def fused(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FusedActivation)]


PARTLY = {"1.1": HALF, "*": None}


@pytest.mark.parametrize("saved_fused", [True, False], ids=["fused", "not fused"])
@pytest.mark.parametrize(
    "make",
    [
        architecture,
        made,
        lambda: made(fuse=False),
        lambda: made(config={"0.0": sk.Sparse(sk.NM(2, 4)), "*": None}),
        lambda: made(config=PARTLY, fold=False),
        lambda: made().train(),
    ],
    ids=["dense", "the same", "not fused", "another granularity", "partly fused", "training"],
)
def test_a_file_loads_into_any_form_of_its_architecture(
    make: Callable[[], nn.Module], saved_fused: bool, tmp_path: Path
) -> None:
    saved, model, x = made(saved_fused), make(), images()
    training = model.training
    sk.save(saved, tmp_path / "model")
    assert sk.load_(model, tmp_path / "model") == ["0.0", "1.1", "1.3"]
    assert fused(model) == fused(saved) == (["0.2", "1.2", "1.4"] if saved_fused else [])
    assert all(module.training == training for module in model.modules())
    torch.testing.assert_close(model(x), saved(x))
    sk.save(model, tmp_path / "again")
    again = architecture()
    sk.load_(again, tmp_path / "again")
    assert fused(again) == fused(saved) and torch.equal(again(x), model(x))
    sk.densify_(model)
    torch.testing.assert_close(model(x), saved(x))
    assert type(model[0][2]) is nn.SiLU and type(model[1][1]) is nn.Linear


def test_a_dense_file_puts_activations_back(tmp_path: Path) -> None:
    dense, model, x = architecture(), made(fold=False), images()
    sk.save(dense, tmp_path / "dense")
    assert sk.load_(model, tmp_path / "dense") == [] and not fused(model)
    torch.testing.assert_close(model(x), dense(x))


def test_a_layer_made_with_an_activation_stays_apart_from_fused_ones(tmp_path: Path) -> None:
    packed = sk.pack(torch.randn(16, 16), sk.Block(16, 1))
    saved = nn.Sequential(sk.SparseLinear(packed, None, "gelu"), nn.GELU())
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.GELU())
    sk.sparsify_(model, HALF, fuse_activations=True)
    sk.save(saved, tmp_path / "model")
    sk.load_(model, tmp_path / "model")
    x = torch.randn(3, 16)
    assert not fused(model) and torch.equal(model(x), saved(x))


@pytest.mark.parametrize("saved", ["what was fused", "what holds it", "a part of it", "a part elsewhere"])
def test_fused_models_are_saved_as_parts_and_in_larger_ones(tmp_path: Path, saved: str) -> None:
    """The names of what was fused are those in the model that is saved."""
    model, fresh, x = architecture(), architecture(), images()
    at = model[0] if saved == "what holds it" else model
    sk.sparsify_(at, HALF, fold_batch_norm=True, fuse_activations=True)
    target = model
    if saved == "a part of it":
        target, fresh = model[0], fresh[0]
    if saved == "a part elsewhere":
        target, fresh = nn.Sequential(nn.ReLU(), model[0]), nn.Sequential(nn.ReLU(), fresh[0])
    sk.save(target, tmp_path / "model")
    sk.load_(fresh, tmp_path / "model")
    assert fused(fresh) == fused(target) != []
    torch.testing.assert_close(fresh(x), target(x))


def test_an_activation_apart_from_its_layer_is_not_saved(tmp_path: Path) -> None:
    model = made()
    with pytest.raises(ValueError, match=r"0: expected the activation 0\.2 beside the layer 0\.0, .*; save the model"):
        sk.save(nn.Sequential(model[0][2]), tmp_path / "model")
    replaced = copy.deepcopy(model)
    replaced[1][1] = replaced[1][1].to_dense()
    with pytest.raises(ValueError, match=r"1\.2: expected a sparse layer '1\.1' that has its gelu fused, found none"):
        sk.save(replaced, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_hooks_on_what_has_to_be_replaced(tmp_path: Path) -> None:
    sk.save(made(), tmp_path / "fused")
    sk.save(made(fuse=False), tmp_path / "unfused")
    for model, file in ((architecture(), "fused"), (made(), "unfused")):
        model[1][2].register_forward_hook(lambda *args: None)
        modules = list(model.modules())
        with pytest.raises(ValueError, match=r"1\.2: has to be replaced, but has hooks, which would be lost"):
            sk.load_(model, tmp_path / file)
        assert list(model.modules()) == modules
    model = made()
    model[1][2].register_forward_hook(lambda *args: None)
    sk.load_(model, tmp_path / "fused")
    assert model[1][2]._forward_hooks, "nothing had to be replaced"


@pytest.mark.parametrize(
    "edit, text",
    [
        (lambda h: h.update(fused=["0.2"]), r"metadata\.fused: expected a JSON object, found list"),
        (lambda h: h["fused"].update({"0.2": 1}), r"metadata\.fused: expected the name of a layer for '0\.2', found 1"),
        (lambda h: h["fused"].update({"0.2": "0.9"}), r"fused: expected a sparse layer .* for '0\.2', found '0\.9'"),
        (lambda h: h["layers"]["0.0"].update(activation="none"), r"expected a sparse layer .* '0\.2', found '0\.0'"),
        (lambda h: h["fused"].update({"1.4": "1.1"}), r"fused: '1\.2' and '1\.4' are both said to be part of '1\.1'"),
        (lambda h: h["layers"]["0.0"].update(activation="relu"), r"0\.2: expected the activation relu .* found SiLU"),
        (lambda h: h.update(fused={"1.2": "0.0"}), r"1\.2: expected the activation silu in the model, found GELU"),
        (lambda h: h.update(fused={"1": "1.1"}), r"1: expected the activation gelu in the model, found Sequential"),
        (lambda h: h.update(fused={"1.1": "1.3"}), r"1\.1: expected the activation gelu .*, found (Sparse)?Linear"),
        (lambda h: h.update(fused={"1.9": "1.1"}), r"1\.9: expected the activation gelu .*, found none of that name"),
        (lambda h: h["layers"]["1.1"].update(shape=[32, 287]), r"1\.1: expected shape \[32, 288\]"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_changes_nothing(
    edit: Callable[[dict[str, Any]], object], text: str, tmp_path: Path
) -> None:
    sk.save(made(), tmp_path / "good")
    with safe_open(tmp_path / "good", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = json.loads(file.metadata()["sparsekern"])
    edit(header)
    save_file(tensors, tmp_path / "edited", {"sparsekern": json.dumps(header)})
    for model in (architecture(), made(), made(fuse=False)):
        modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=text) as caught:
            sk.load_(model, tmp_path / "edited")
        assert str(caught.value).startswith(f"{tmp_path / 'edited'}: ")
        assert list(model.modules()) == modules and list(model.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_files_without_the_entry_still_load(tmp_path: Path) -> None:
    sk.save(made(fuse=False), tmp_path / "model")
    with safe_open(tmp_path / "model", "pt") as file:
        assert "fused" not in json.loads(file.metadata()["sparsekern"])
    sk.load_(architecture(), tmp_path / "model")
