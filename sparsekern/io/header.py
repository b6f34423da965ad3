"""The metadata of a file: which layers are sparse and how, and which tensors are one and the same."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..layouts import Granularity, parse
from ..ops import ACTIVATIONS
from ..ops_conv import CONV_ACTIVATIONS

KEY = "sparsekern"
"""Key of the header in the safetensors metadata."""

VERSION = 1
"""Version of the header that this package writes, and the only one that it reads."""


@dataclass(frozen=True)
class LayerEntry:
    """What the tensors of a sparse layer mean.

    Attributes:
        granularity: layout of the packed weight.
        shape: ``(out, in)`` of the dense weight, or ``(out, in / groups, kh, kw)``.
        activation: fused activation, or ``"none"``.
    """

    granularity: Granularity
    shape: tuple[int, ...]
    activation: str


@dataclass(frozen=True)
class Header:
    """What a file says about its tensors.

    Attributes:
        layers: the sparse layers by fully qualified name.
        shared: tensors that are another tensor of the file under a second name: ``{name: stored name}``.
        folded: BatchNorms that are part of a convolution now: ``{name: name of the convolution}``.
        fused: activations that a sparse layer computes now: ``{name: name of the layer}``.
    """

    layers: Mapping[str, LayerEntry]
    shared: Mapping[str, str]
    folded: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text form that :func:`parse_header` reads back."""
        layers = {
            name: {"granularity": entry.granularity.spec, "shape": list(entry.shape), "activation": entry.activation}
            for name, entry in self.layers.items()
        }
        header = {"version": VERSION, "layers": layers, "shared": dict(self.shared)}
        more = {"folded": dict(self.folded), "fused": dict(self.fused)}
        return json.dumps(header | {key: names for key, names in more.items() if names})


def parse_header(metadata: Mapping[str, str] | None) -> Header:
    """Read and check the header of a file.

    Raises:
        ValueError: what was expected and what was found.
    """
    if not metadata or KEY not in metadata:
        raise ValueError(f"metadata: expected an entry {KEY!r} as sparsekern.save writes it, found none")
    try:
        header = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata: expected JSON, but {error}") from None
    fields = _object(header, "metadata")
    if fields.get("version") != VERSION:
        raise ValueError(f"metadata: expected format version {VERSION}, found {fields.get('version')!r}")
    layers = {name: _layer(entry, name) for name, entry in _object(fields.get("layers"), "metadata.layers").items()}
    shared = _names(fields.get("shared"), "metadata.shared", "a tensor")
    folded = _names(fields.get("folded", {}), "metadata.folded", "a convolution")
    return Header(layers, shared, folded, _fused(fields.get("fused", {}), layers))


def import_safetensors(module: str) -> Any:
    """Import a module of the optional package ``safetensors``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'sparsekern.save and load_ need safetensors: pip install "sparsekern[io]" ({error})'
        ) from None


def _layer(entry: Any, name: str) -> LayerEntry:
    fields = _object(entry, f"metadata of layer {name!r}")
    spec, shape, activation = (fields.get(key) for key in ("granularity", "shape", "activation"))
    if not isinstance(spec, str):
        raise ValueError(f"{name}: expected a granularity such as 'block(16,1)', found {spec!r}")
    if not (isinstance(shape, list) and len(shape) in (2, 4) and all(type(side) is int and side > 0 for side in shape)):
        raise ValueError(
            f"{name}: expected a shape [out, in] of two integers > 0, or [out, in, kh, kw] of four, found {shape!r}"
        )
    known = ACTIVATIONS if len(shape) == 2 else CONV_ACTIVATIONS
    if not isinstance(activation, str) or activation not in known:
        raise ValueError(f"{name}: expected an activation of {', '.join(known)}, found {activation!r}")
    try:
        return LayerEntry(parse(spec), tuple(shape), activation)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _fused(value: Any, layers: Mapping[str, LayerEntry]) -> dict[str, str]:
    what = "metadata.fused"
    fused, first = _names(value, what, "a layer"), dict[str, str]()
    for name, layer in fused.items():
        if layer not in layers or layers[layer].activation == "none":
            raise ValueError(f"{what}: expected a sparse layer with an activation for {name!r}, found {layer!r}")
        if layer in first:
            raise ValueError(f"{what}: {first[layer]!r} and {name!r} are both said to be part of {layer!r}")
        first[layer] = name
    return fused


def _names(value: Any, what: str, of: str) -> dict[str, str]:
    names = _object(value, what)
    for name, other in names.items():
        if not isinstance(other, str):
            raise ValueError(f"{what}: expected the name of {of} for {name!r}, found {other!r}")
    return names


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected a JSON object, found {type(value).__name__}")
    return value
