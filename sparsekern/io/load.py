"""``load_``: a file of :func:`sparsekern.save` into a model, sparse or never sparsified."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layouts import Granularity, PackedWeight, matrix_shape
from ..nn.fold import as_folded
from ..nn.fuse import as_fused
from ..nn.plain import DenseLayer, dense_shape, has_hooks
from ..nn.sparse_layer import SparseLayer
from ..nn.surgery import Site, check_unwrapped, find_sites, not_plain, replace, sparse_twin, uncompiled
from .header import Header, LayerEntry, import_safetensors, parse_header
from .save import view_of

State = Mapping[str, Tensor]


def load_(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Load a file that :func:`sparsekern.save` wrote into a model, in place.

    Layers become sparse or dense as they were when saved, and BatchNorms and activations part of a layer or
    not. Parameters of the model stay the same objects, except for the weights of replaced layers. The whole
    file is checked against the model before anything is changed: if it does not fit, the model is as it was.
    Only hooks and other loading code of the model's own can still fail then; all layers are again of the kind
    that they were, but parameters may hold numbers of the file.

    Args:
        model: the architecture that was saved: dense, never sparsified, or sparse already. It must
            have its dtype and device; tensors are copied to where the model's are.
        path: a file of :func:`sparsekern.save`.

    Returns:
        Names of the sparse layers.

    Raises:
        ImportError: safetensors is not installed; it comes with ``pip install "sparsekern[io]"``.
        FileNotFoundError: no such file.
        TypeError: ``model`` is no module.
        ValueError: the file is damaged or does not belong to this model: what was expected, what was
            found.
    """
    model = uncompiled(model)
    header, tensors = _read(path)
    with _naming(path):
        for name, owner in header.shared.items():
            if name in tensors or owner not in tensors:
                raise ValueError(f"metadata.shared: {name!r} is said to be {owner!r}; expected only the latter stored")
            tensors[name] = tensors[owner]
        if header.folded:
            check_unwrapped(model)
        activations = {name: entry.activation for name, entry in header.layers.items()}
        with as_folded(model, header.folded), as_fused(model, header.fused, activations):
            _load(model, header, tensors)
    return list(header.layers)


def _load(model: nn.Module, header: Header, tensors: State) -> None:
    """Check the file against the model, then take it over."""
    sites = find_sites(model)
    packed = _packed_weights(model, sites, header, tensors)
    _check_against_model(model, packed, sites, tensors)
    replacements = _replacements(sites, header, packed)
    if replacements:
        check_unwrapped(model)
    replace(model, replacements)
    try:
        model.load_state_dict(tensors)
    except BaseException:  # loading code of the model's own; the rest was checked
        replace(model, {new: old for old, new in replacements.items()})
        raise


def _read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    safe_open = import_safetensors("safetensors").safe_open
    with open(path, "rb"):  # for the error of the operating system where there is no file to read
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # its kind depends on where the damage is
        raise ValueError(f"{os.fspath(path)}: expected a whole safetensors file, but {error}") from error
    with _naming(path):
        return parse_header(metadata), tensors


def _packed_weights(model: nn.Module, sites: list[Site], header: Header, tensors: State) -> dict[Site, PackedWeight]:
    """The weights of the layers that the file wants sparse, verified."""
    modules = dict(model.named_modules(remove_duplicate=False))
    known = {name for site in sites for name in site.names}
    for name in header.layers:
        if name not in known:
            found = f"a {type(modules[name]).__name__}" if name in modules else "none of that name"
            raise ValueError(f"{name}: expected a Linear or Conv2d layer in the model, found {found}")
    packed = {}
    for site in sites:
        entries = {name: header.layers.get(name) for name in site.names}
        entry = entries[site.name]
        for name, other in entries.items():
            if other != entry:
                raise ValueError(f"{name}: expected the same as {site.name}, which is one layer with it, found {other}")
        if entry is not None:
            packed[site] = _packed_weight(site, entry, tensors)
    return packed


def _packed_weight(site: Site, entry: LayerEntry, tensors: State) -> PackedWeight:
    layer, name = site.layer, site.name
    shape = layer.packed.dense_shape if isinstance(layer, SparseLayer) else dense_shape(layer)
    if entry.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)} as in the model, found {list(entry.shape)}")
    if not isinstance(layer, SparseLayer) and (obstacle := not_plain(site)):
        raise ValueError(f"{name}: expected a layer that can be replaced, but it {obstacle}")
    parts = entry.granularity.part_names
    for alias in site.names:
        for part in parts:
            key = _join(alias, part)
            if key not in tensors:
                raise ValueError(f"{name}: expected a tensor {key!r}, found none")
            _check_same(_join(name, part), key, tensors)
    matrix, kernel = matrix_shape(shape)
    found = PackedWeight.from_tensors(
        entry.granularity, matrix, [tensors[_join(name, part)] for part in parts], name, kernel
    )
    dtype = _values(layer).dtype
    if found.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype} as in the model, found {found.dtype}; cast the model first")
    return found


def _check_against_model(model: nn.Module, packed: Mapping[Site, PackedWeight], sites: list[Site], file: State) -> None:
    """Refuse a file with other names, shapes or dtypes than the model will have."""
    expected: dict[str, Any] = model.state_dict()
    for key, tensor in expected.items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise ValueError(f"{key}: the model is on the meta device; give it memory with model.to_empty(device=...)")
    for site in sites:
        weight = _weight_to_be(site, packed)
        old = site.layer.granularity.part_names if isinstance(site.layer, SparseLayer) else ("weight",)
        for name in site.names if weight else ():
            for part in old:
                del expected[_join(name, part)]
            expected.update({_join(name, part): tensor for part, tensor in weight.items()})
    for what, keys in (("no", expected.keys() - file.keys()), ("the unexpected", file.keys() - expected.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")
            raise ValueError(f"expected the tensors of the model, found {what} {some}")
    first: dict[tuple[Any, ...], str] = {}
    for key, tensor in expected.items():
        found = file[key]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ValueError(
                f"{key}: expected {tensor.dtype} {list(tensor.shape)} as in the model, "
                f"found {found.dtype} {list(found.shape)}"
            )
        _check_same(first.setdefault(view_of(tensor), key), key, file)


def _weight_to_be(site: Site, packed: Mapping[Site, PackedWeight]) -> Mapping[str, Tensor]:
    """The tensors that will hold a layer's weight; none if they stay the same."""
    if site in packed:
        return packed[site].parts
    if isinstance(site.layer, SparseLayer):
        return {"weight": torch.empty(site.layer.packed.dense_shape, dtype=_values(site.layer).dtype, device="meta")}
    return {}


def _check_same(first: str, second: str, file: State) -> None:
    """Refuse two different tensors for what is one tensor in the model."""
    if file[first] is not file[second] and not torch.equal(file[first], file[second]):
        raise ValueError(f"{second}: expected the same tensor as {first}, as in the model, found another")


def _replacements(sites: list[Site], header: Header, packed: Mapping[Site, PackedWeight]) -> dict[nn.Module, nn.Module]:
    """The modules that have to change their kind."""
    made: dict[nn.Module, nn.Module] = {}
    for site in sites:
        layer, weight = site.layer, packed.get(site)
        if weight is not None:
            entry = header.layers[site.name]
            # A sparse layer of that layout takes any number of blocks from its state_dict.
            if not isinstance(layer, SparseLayer) or _layout(layer) != (entry.granularity, entry.activation):
                made[layer] = _sparse(layer, weight, site.name, entry.activation)
        elif isinstance(layer, SparseLayer):
            made[layer] = _dense(layer)
        if layer in made and not site.name:
            raise ValueError(f"the model is itself a {type(layer).__name__}, which cannot become another kind in place")
        if layer in made and has_hooks(layer):
            raise ValueError(f"{site.name}: has to be replaced, but has hooks, which would be lost; remove them first")
    return made


def _values(layer: DenseLayer | SparseLayer) -> Tensor:
    return layer.packed.values if isinstance(layer, SparseLayer) else layer.weight


def _layout(layer: SparseLayer) -> tuple[Granularity, str]:
    return layer.granularity, layer.activation


def _sparse(layer: DenseLayer | SparseLayer, weight: PackedWeight, name: str, activation: str) -> SparseLayer:
    # Copied, because tensors that were read from a file may still be backed by it.
    parts = {part: tensor.to(_values(layer).device, copy=True) for part, tensor in weight.parts.items()}
    return sparse_twin(layer, dataclasses.replace(weight, parts=parts), name, activation)


def _dense(layer: SparseLayer) -> nn.Module:
    """A dense layer in the place of a sparse one, for a weight still to be loaded."""
    dense = layer.empty_dense()
    dense.register_parameter("bias", layer._parameters["bias"])
    return dense.train(layer.training)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name in front of errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
