"""Whether a dense layer is just that: what a sparse layer can stand in for."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

DenseLayer = nn.Linear | nn.Conv2d
DENSE_LAYERS = (nn.Linear, nn.Conv2d)
"""The layers that have a sparse form."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def beyond_plain(layer: nn.Module) -> str | None:
    """What a dense layer is, does or has beyond an ``nn.Linear`` or ``nn.Conv2d``, in words for an error.

    None if nothing.
    """
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return "is not initialised yet; run the model once"
    if torch.nn.utils.parametrize.is_parametrized(layer):
        return "has a parametrization; torch.nn.utils.parametrize.remove_parametrizations makes it permanent"
    base = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    methods = ("forward", "__call__") if base is nn.Linear else ("forward", "__call__", "_conv_forward")
    for method in methods:
        if getattr(type(layer), method) is not getattr(base, method) or method in vars(layer):
            return f"{type(layer).__name__} has a {method} of its own"
    if set(layer._parameters) != {"weight", "bias"}:
        found = ", ".join(layer._parameters)
        return f"has the parameters {found}, not weight and bias; torch.nn.utils.prune.remove makes masks permanent"
    if layer._buffers or layer._modules:
        return f"holds more than weight and bias: {', '.join(chain(layer._buffers, layer._modules))}"
    if has_hooks(layer):
        return "has hooks, which may rely on its weight; remove them first"
    kind = type(getattr(layer._parameters["weight"], "data", None))
    if kind is not Tensor:
        return f"its weight is a {kind.__name__}, not a plain tensor"
    return None


def dense_shape(layer: DenseLayer) -> tuple[int, ...]:
    """Shape of a layer's weight, by what the layer says, for the weight may not be there yet."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody hooked into a module, so that replacing it would lose something."""
    return any(getattr(module, hooks, None) for hooks in _HOOKS)
