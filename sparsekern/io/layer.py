"""One sparse layer out of a file, without a model to load it into."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..layouts import PackedWeight, matrix_shape
from .header import import_safetensors, parse_header


@dataclass(frozen=True)
class StoredLayer:
    """A sparse layer as a file holds it.

    Attributes:
        name: fully qualified.
        packed: its weight, verified.
        activation: fused with it, or ``"none"``.
    """

    name: str
    packed: PackedWeight
    activation: str


def read_layer(path: str | os.PathLike[str], name: str | None = None) -> StoredLayer:
    """Read a sparse layer from a file that :func:`sparsekern.save` wrote.

    Args:
        path: the file.
        name: of the layer; None for the first sparse one.

    Raises:
        ImportError: safetensors is not installed; it comes with ``pip install "sparsekern[io]"``.
        OSError: there is no such file, or it cannot be read.
        ValueError: the file is damaged, or has no sparse layer of that name; which ones it has.
    """
    safe_open = import_safetensors("safetensors").safe_open
    with open(path, "rb"):  # for the error of the operating system where there is no file to read
        pass
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_header(file.metadata())
            known = list(header.layers)
            if not known or (name is not None and name not in known):
                wanted = "a sparse layer" if name is None else f"a sparse layer {name!r}"
                raise ValueError(f"expected {wanted}, found {', '.join(map(repr, known)) or 'none'}")
            chosen = known[0] if name is None else name
            entry = header.layers[chosen]
            keys = [f"{chosen}.{part}" if chosen else part for part in entry.granularity.part_names]
            tensors = [file.get_tensor(header.shared.get(key, key)) for key in keys]
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    except Exception as error:  # its kind depends on where the damage is
        raise ValueError(f"{os.fspath(path)}: expected a whole safetensors file, but {error}") from error
    shape, kernel = matrix_shape(entry.shape)
    packed = PackedWeight.from_tensors(entry.granularity, shape, tensors, f"{os.fspath(path)}: {chosen}", kernel)
    return StoredLayer(chosen, packed, entry.activation)
