"""``save``: a model, dense and sparse layers alike, as one safetensors file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.fold import FoldedBatchNorm
from ..nn.fuse import FusedActivation
from ..nn.sparse_layer import SparseLayer
from ..nn.surgery import find_sites, uncompiled
from .header import KEY, Header, LayerEntry, import_safetensors


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the tensors of a model, and what the packed ones mean, into a safetensors file.

    The file is whole or not there: it is written beside ``path`` and then moved to it. Tensors that
    are the same under several names are stored once. Like any state_dict it does not hold the
    architecture: :func:`sparsekern.load_` wants the model.

    Args:
        model: any module; every entry of its state_dict must be a dense tensor.
        path: where to write; an existing file is replaced.

    Raises:
        ImportError: safetensors is not installed; it comes with ``pip install "sparsekern[io]"``.
        TypeError: ``model`` is no module.
        ValueError: an entry of the state_dict that cannot be stored, a malformed packed weight, a folded BatchNorm
            without its convolution, or a fused activation without its layer.
    """
    safetensors = import_safetensors("safetensors.torch")
    model = uncompiled(model)
    layers = {}
    for site in find_sites(model):
        if isinstance(site.layer, SparseLayer):
            packed = site.layer.packed
            packed.verify(site.name or site.layer.name)
            entry = LayerEntry(packed.granularity, packed.dense_shape, site.layer.activation)
            layers.update(dict.fromkeys(site.names, entry))
    tensors, shared = _stored(model.state_dict())
    # "format" is what other readers of safetensors files look for.
    folded = {
        name: module.layer_beside(name) for name, module in model.named_modules() if isinstance(module, FoldedBatchNorm)
    }
    metadata = {"format": "pt", KEY: Header(layers, shared, folded, _fused(model, layers)).to_json()}
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.unfinished")
    try:
        safetensors.save_file(tensors, unfinished, metadata)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _fused(model: nn.Module, layers: Mapping[str, LayerEntry]) -> dict[str, str]:
    """The activations that layers of the model have fused, which say where they stood, and those layers."""
    fused = {}
    for name, module in model.named_modules():
        if isinstance(module, FusedActivation):
            layer = fused[name] = module.layer_beside(name)
            if layer not in layers or layers[layer].activation != module.kind:
                raise ValueError(
                    f"{name}: expected a sparse layer {layer!r} that has its {module.kind} fused, found none; "
                    "sparsekern.densify_ puts activations back before layers are replaced by hand"
                )
    return fused


def _stored(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to write, no two of which share memory, and names that mean one of them too."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
            found = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name}: expected a dense tensor with values, found {found}; it cannot be stored")
        same = names.setdefault(view_of(tensor), name)
        if same != name:
            shared[name] = same
            continue
        storage = tensor.untyped_storage().data_ptr()
        # A part of memory that is stored already, or a tensor with gaps, becomes a tensor of its own.
        tensors[name] = (
            tensor.clone(memory_format=torch.contiguous_format) if storage in storages else tensor.contiguous()
        )
        storages.add(storage)
    return tensors, shared


def view_of(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same elements of the same memory."""
    if not tensor.numel() or tensor.is_meta:  # no memory to compare
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
