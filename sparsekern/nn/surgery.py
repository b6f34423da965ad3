"""Finding the layers of a model that have a sparse form, saying which can be replaced, and replacing them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ..layouts import PackedWeight
from .plain import DENSE_LAYERS, DenseLayer, beyond_plain
from .sparse_conv import SparseConv2d
from .sparse_layer import SparseLayer
from .sparse_linear import SparseLinear

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


@dataclass(frozen=True, eq=False)
class Site:
    """A Linear or Conv2d layer, dense or sparse, and where the model keeps it.

    Attributes:
        layer: the module.
        names: its fully qualified names, several if it is shared; the first is what it is called.
        owners: the modules that hold it.
        aside: a place that holds it too, but not as a submodule, such as ``"encoder.all"``; None if none does.
    """

    layer: DenseLayer | SparseLayer
    names: tuple[str, ...]
    owners: tuple[nn.Module, ...]
    aside: str | None

    @property
    def name(self) -> str:
        """What the layer is called."""
        return self.names[0]


def uncompiled(model: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``, whose layers have the names that the user knows.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return getattr(model, "_orig_mod", model)


def find_sites(model: nn.Module) -> list[Site]:
    """The Linear and Conv2d layers of a model in its own order, each once. The model itself has the name ``""``."""
    names = defaultdict[DenseLayer | SparseLayer, list[str]](list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (*DENSE_LAYERS, SparseLayer)):
            names[module].append(name)
    owners = defaultdict[nn.Module, list[nn.Module]](list)
    for parent in model.modules():
        for child in parent._modules.values():
            if isinstance(child, (*DENSE_LAYERS, SparseLayer)):
                owners[child].append(parent)
    aside = held_aside(model)
    return [Site(layer, tuple(found), tuple(owners[layer]), aside.get(layer)) for layer, found in names.items()]


def held_aside(model: nn.Module) -> dict[nn.Module, str]:
    """Modules that plain attributes hold, themselves or in a list, tuple or dict, and where."""
    places = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute == "_modules":
                continue
            held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            for item in held:
                if isinstance(item, nn.Module):
                    places[item] = f"{name}.{attribute}".lstrip(".")
    return places


def check_unwrapped(model: nn.Module) -> None:
    """Refuse to replace layers behind a wrapper that keeps books on the Parameters that it found.

    Raises:
        ValueError: a part of the model is wrapped for distributed training.
    """
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                raise ValueError(
                    f"{name or 'model'}: is wrapped in {kind.__name__}, which would miss the replaced weights; "
                    "sparsify or densify the model inside (.module), then wrap it"
                )


class Obstacles:
    """Says why a layer of a model cannot be replaced by a sparse one."""

    def __init__(self, model: nn.Module) -> None:
        self._holders = _tensors_by_address(model)

    def of(self, site: Site) -> str | None:
        """The reason to leave a dense layer as it is, or None."""
        return not_plain(site) or self._shared(site.layer)

    def _shared(self, layer: nn.Module) -> str | None:
        weight = layer._parameters["weight"]
        assert weight is not None
        others = [name for module, name in self._holders[_address(weight)] if module is not layer]
        return f"weight shared with {others[0].removesuffix('.weight')}" if others else None


def not_plain(site: Site) -> str | None:
    """What a dense layer is or has beyond one of PyTorch that is simply called; None if nothing."""
    assert isinstance(site.layer, DENSE_LAYERS)
    if beyond := beyond_plain(site.layer):
        return beyond
    if site.aside:
        return f"is also held by {site.aside}, where it could not be replaced; use nn.ModuleList or nn.ModuleDict"
    for parent in site.owners if isinstance(site.layer, nn.Linear) else ():
        if isinstance(parent, nn.MultiheadAttention):
            return "nn.MultiheadAttention multiplies with its weight itself"
        if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
            return (
                "nn.TransformerEncoderLayer's fast path multiplies with its weight itself; "
                "call torch.backends.mha.set_fastpath_enabled(False) first"
            )
    return None


def sparse_twin(
    layer: DenseLayer | SparseLayer, packed: PackedWeight, name: str, activation: str | None = None
) -> SparseLayer:
    """A sparse layer to stand where ``layer`` stood, with the same bias Parameter.

    The Parameter is kept because others may hold it: an optimizer, or a module that shares it.
    """
    sparse: SparseLayer
    if isinstance(layer, (nn.Linear, SparseLinear)):
        sparse = SparseLinear(packed, layer.bias, activation, name)
    else:
        assert isinstance(layer, (nn.Conv2d, SparseConv2d))
        sparse = SparseConv2d.of_conv(layer, packed, layer.bias, activation, name)
    sparse.register_parameter("bias", layer._parameters["bias"])
    if isinstance(layer, SparseLayer):
        sparse._dense_requires_grad = layer._dense_requires_grad
    else:
        sparse._dense_requires_grad = layer.weight.requires_grad
    return sparse.train(layer.training)


def dense_twin(sparse: SparseLayer, activation: bool = True) -> nn.Module:
    """``sparse.to_dense()``, with or without its activation, with the same bias Parameter."""
    dense = sparse.to_dense() if activation else sparse.without_activation()
    layer = dense if isinstance(dense, DENSE_LAYERS) else dense.get_submodule("0")
    layer.register_parameter("bias", sparse._parameters["bias"])
    return dense


def replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, wherever in ``model`` those are held. Cannot fail."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]


def _tensors_by_address(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Which modules hold which memory, under which names."""
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module_name, module in model.named_modules():
        for name, tensor in _own_tensors(module):
            holders[_address(tensor)].append((module, f"{module_name}.{name}".lstrip(".")))
    return holders


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None and not nn.parameter.is_lazy(tensor):
            yield name, tensor


def _address(tensor: Tensor) -> int:
    """Equal for tensors that share their memory from its start, whatever Parameters wrap it."""
    # Tensors without memory (on meta, empty, some subclasses) are known by themselves.
    if tensor.device.type == "meta" or not tensor.numel() or type(tensor.data) is not Tensor:
        return id(tensor)
    return tensor.data_ptr()
