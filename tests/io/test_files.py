"""``save`` and ``load_``: what goes in comes out, into any form of the architecture."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import sparsekern as sk

HALF = sk.Sparse(sk.Block(16, 1), 0.5)


class Net(nn.Module):
    """Layers of several granularities, statistics, a tied weight, a layer with two names, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.first = nn.Linear(32, 48)
        self.again = self.first
        self.second = nn.Linear(48, 32, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.dense = nn.Linear(32, 32)
        self.head = nn.Linear(32, 64)
        self.head.weight = self.embedding.weight

    def forward(self, i: Tensor) -> Tensor:
        return self.head(self.dense(self.norm(self.second(self.again(self.embedding(i))))))


def sparse_net() -> Net:
    model = Net().eval()
    model.norm.running_mean.uniform_()
    sk.sparsify_(model, {"first": HALF, "second": sk.Sparse(sk.Block(4, 4), 0.75), "*": None})
    return model


INPUT = torch.arange(10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def sparsified(config: Any) -> Callable[[], Net]:
    def make() -> Net:
        model = Net().eval()
        sk.sparsify_(model, config)
        return model

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net().eval(),
        sparse_net,
        sparsified({"first": sk.Sparse(sk.Block(16, 1), 0.9), "second": HALF}),
        sparsified(sk.Sparse(sk.Unstructured(), 0.5)),
        sparsified({"dense": HALF, "*": None}),
    ],
    ids=["dense", "the same", "other blocks", "another granularity", "sparse where it was dense"],
)
def test_a_file_loads_into_any_form_of_its_architecture(make: Callable[[], Net], path: Path) -> None:
    saved = sparse_net()
    sk.save(saved, path)
    model = make()
    parameters = dict(model.named_parameters())
    assert sk.load_(model, path) == ["first", "again", "second"]
    assert torch.equal(model(INPUT), saved(INPUT))
    assert model.first is model.again and model.head.weight is model.embedding.weight
    for name, parameter in model.named_parameters():
        if name != "dense.weight":  # which is new where the layer was sparse
            assert parameter is parameters[name]
    assert {n: type(m) for n, m in model.named_modules()} == {n: type(m) for n, m in saved.named_modules()}
    state = model.state_dict()
    assert list(state) == list(saved.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.state_dict().items())
    assert [row.granularity for row in sk.sparsify_(model, HALF) if row.layer in ("first", "second")] == ["16x1", "4x4"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "granularity",
    [sk.Block(8, 3), sk.NM(2, 4), sk.NM(4, 8, 8), sk.Unstructured(), sk.Channel()],
    ids=lambda g: g.label,
)
def test_every_granularity_and_dtype(granularity: Any, dtype: torch.dtype, path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(24, 30), nn.Linear(30, 24, bias=False)).to(dtype)

    saved, loaded = model(), model()
    sk.sparsify_(saved, sk.Sparse(granularity, 0.5))
    sk.save(saved, path)
    sk.load_(loaded, path)
    x = torch.randn(3, 24).to(dtype)
    assert loaded[0].granularity == granularity and torch.equal(loaded(x), saved(x))


def test_activations_modes_and_frozen_biases(path: Path) -> None:
    packed = sk.pack(torch.randn(32, 32), sk.Block(16, 1))
    saved = nn.Sequential(sk.SparseLinear(packed, torch.randn(32), "gelu"), sk.SparseLinear(packed))
    sk.save(saved, path)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32, bias=False))
    model[0].eval().bias.requires_grad_(False)
    sk.load_(model, path)
    assert [m.activation for m in model] == ["gelu", "none"] and [m.name for m in model] == ["0", "1"]
    assert [m.training for m in model] == [False, True] and not model[0].bias.requires_grad
    assert torch.equal(model(packed.to_dense()), saved(packed.to_dense()))


def test_a_single_layer(path: Path) -> None:
    saved, other = (sk.SparseLinear.from_dense(nn.Linear(24, 48), sk.Block(16, 1), s) for s in (0.3, 0.8))
    sk.save(saved, path)
    assert sk.load_(other, path) == [""]
    assert torch.equal(other.weight, saved.weight) and torch.equal(other.bias, saved.bias)
    for model in (nn.Linear(24, 48), sk.SparseLinear.from_dense(nn.Linear(24, 48), sk.Channel(), 0.5)):
        with pytest.raises(ValueError, match=f"the model is itself a {type(model).__name__}"):
            sk.load_(model, path)


def test_a_dense_model_and_a_compiled_one(path: Path) -> None:
    saved, model = Net().eval(), sparse_net()
    sk.save(torch.compile(saved), path)
    assert sk.load_(torch.compile(model), path) == []
    assert type(model.first) is nn.Linear and torch.equal(model(INPUT), saved(INPUT))


def test_a_dense_file_into_sparse_layers_of_equal_size(path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))

    saved, sparse = model(), model()
    sk.save(saved, path)
    sk.sparsify_(sparse, HALF)
    assert sk.load_(sparse, path) == []
    assert all(torch.equal(new.weight, old.weight) for new, old in zip(sparse, saved, strict=True))


def test_the_file_is_what_the_documentation_says(path: Path) -> None:
    saved = sparse_net()
    sk.save(saved, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["format"] == "pt"
    assert '"version": 1' in metadata["sparsekern"] and '"granularity": "block(16,1)"' in metadata["sparsekern"]
    # Shared tensors once: the tied weight, and the layer with two names.
    assert names == set(saved.state_dict()) - {"head.weight"} - {f"again.{n}" for n in saved.first.state_dict()}
    stored = sum(t.nbytes for name, t in saved.state_dict().items() if name in names)
    assert path.stat().st_size < stored + 4096


def test_tensors_that_overlap_or_have_gaps(path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.randn(8, 6)
            self.register_buffer("whole", base)
            self.register_buffer("rows", base[2:5])
            self.register_buffer("columns", base[:, ::2])
            self.register_buffer("transposed", base.T)
            self.register_buffer("empty", torch.empty(0, 3))
            self.register_buffer("number", torch.tensor(7))

    saved, model = Views(), Views()
    sk.save(saved, path)
    for buffer in model.buffers():
        buffer.zero_()
    sk.load_(model, path)
    for name, buffer in saved.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)


def test_a_tie_of_the_file_loads_into_a_model_without_it(path: Path) -> None:
    saved, model = sparse_net(), Net().eval()
    sk.save(saved, path)
    model.head.weight = nn.Parameter(torch.zeros(64, 32))
    sk.load_(model, path)
    assert model.head.weight is not model.embedding.weight and torch.equal(model(INPUT), saved(INPUT))


def test_the_model_does_not_need_the_file_any_more(path: Path) -> None:
    saved, model = sparse_net(), Net().eval()
    sk.save(saved, path)
    sk.load_(model, path)
    with open(path, "r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(model(INPUT), saved(INPUT))
    sk.save(model, path)
    sk.load_(model, path)
    sk.save(model, path)
    assert torch.equal(model(INPUT), saved(INPUT))


# ---- whole or not there --------------------------------------------------------------------------


def test_a_failed_save_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse_net()
    sk.save(model, path)
    before = path.read_bytes()

    def disk_full(tensors: Any, target: Path, metadata: Any) -> None:
        Path(target).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", disk_full)
    for target in (path, path.with_name("new.safetensors")):
        with pytest.raises(OSError, match="No space left"):
            sk.save(model, target)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_saving_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises((OSError, safetensors.SafetensorError)):
        sk.save(sparse_net(), tmp_path / "no" / "folder.safetensors")


def test_what_cannot_be_saved(path: Path) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    broken = sparse_net()
    broken.first.offsets[0] = 5
    for model, text in (
        (nn.Sequential(Extra()), "^0._extra_state: expected a dense tensor with values, found dict"),
        (nn.Sequential(nn.Linear(3, 3, device="meta")), "^0.weight: expected .* found torch.strided on meta"),
        (broken, r"^first\.offsets: expected to rise from 0"),
    ):
        with pytest.raises(ValueError, match=text):
            sk.save(model, path)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        sk.save({}, path)  # type: ignore[arg-type]
    assert not os.listdir(path.parent)


def test_without_the_package_the_error_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sk.save(sparse_net(), path)
    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    for use in (lambda: sk.save(Net(), path), lambda: sk.load_(Net(), path)):
        with pytest.raises(ImportError, match=r'pip install "sparsekern\[io\]"'):
            use()
