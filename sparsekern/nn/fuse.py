"""Activations that become part of the sparse layer before them: its kernel computes them while it has the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from ..ops import ACTIVATIONS
from ..ops_conv import CONV_ACTIVATIONS
from .absorbed import Absorbed
from .neighbours import Neighbours, neighbours
from .plain import DENSE_LAYERS, has_hooks
from .sparse_layer import ACTIVATION_MODULES, SparseLayer
from .surgery import replace

_KINDS: dict[type[nn.Module], str] = {module: kind for kind, module in ACTIVATION_MODULES.items()}
_KINDS[nn.Hardtanh] = "relu6"


def kind_of(module: nn.Module | None) -> str | None:
    """What kernels call that which a module computes; None if it is no activation of theirs, or is more than one."""
    if module is None or "forward" in vars(module) or module._modules or module._parameters or module._buffers:
        return None
    if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) != (0, 6):
        return None
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return _KINDS.get(type(module))


class FusedActivation(Absorbed):
    """Stands where an activation stood that the sparse layer before it has fused.

    Args:
        activation: what stood there, to be put back when the layer becomes dense.
        layer: name of the sparse layer, in the model in which this happened.
        name: of the activation, in the same.
    """

    _kind, _kind_of_layer, _became = "activation", "layer", "fused"

    def __init__(self, activation: nn.Module, layer: str, name: str) -> None:
        super().__init__(layer, name)
        self._replaced = (activation,)  # in a tuple, where it is no submodule: the model does not call it
        self.train(activation.training)

    @property
    def kind(self) -> str | None:
        """What kernels call what stood there."""
        return kind_of(self._replaced[0])

    def original(self) -> nn.Module:
        """What stood there, in the mode that this module is in now."""
        return self._replaced[0].train(self.training)


@dataclass(frozen=True)
class Fusion:
    """An activation that its layer could take over.

    Attributes:
        kind: what kernels call it.
        module: the activation.
        name: of it in the model.
    """

    kind: str
    module: nn.Module
    name: str


@dataclass
class Fusions:
    """The activations of a model that read the output of a dense layer.

    Attributes:
        around: how they were found.
        found: those that the layer could take over.
        reasons: why other layers cannot.
    """

    around: Neighbours = field(default_factory=lambda: Neighbours(()))
    found: dict[nn.Module, Fusion] = field(default_factory=dict)
    reasons: dict[nn.Module, str] = field(default_factory=dict)

    def note(self, layer: nn.Module) -> str:
        """What a report says of a layer that is sparse now."""
        if layer in self.found:
            return f"{self.found[layer].kind} ({self.found[layer].name}) fused in{self.around.assumption}"
        return f"activation not fused: {self.reasons[layer]}" if layer in self.reasons else ""

    def give_up(self, reason: str) -> None:
        """Fuse none of them."""
        for layer, fusion in self.found.items():
            self.reasons[layer] = f"{fusion.name}: {reason}"
        self.found.clear()


def find_fusions(model: nn.Module) -> Fusions:
    """Look for activations that alone read the output of a layer, in training as in eval mode."""
    around = neighbours(model, DENSE_LAYERS, tuple(_KINDS), modes=(False, True))
    fusions = Fusions(around)
    names = {module: name for name, module in model.named_modules()}
    for pair in around.pairs:
        kind, reason = kind_of(pair.reader), pair.obstacle
        if kind not in (ACTIVATIONS if isinstance(pair.source, nn.Linear) else CONV_ACTIVATIONS):
            reason = f"{pair.reader} is none that the layer's kernels have"
        elif has_hooks(pair.reader):
            reason = "it has hooks"
        if kind is None or reason is not None:
            fusions.reasons[pair.source] = f"{names[pair.reader]}: {reason}"
        else:
            fusions.found[pair.source] = Fusion(kind, pair.reader, names[pair.reader])
    if around.untraceable and len(fusions.found) < sum(isinstance(module, tuple(_KINDS)) for module in names):
        for module in names:
            if isinstance(module, DENSE_LAYERS) and module not in fusions.found:
                fusions.reasons.setdefault(module, f"{around.untraceable}, and none follows in an nn.Sequential")
    return fusions


def fused_in(model: nn.Module) -> dict[nn.Module, FusedActivation]:
    """The identities in the places of what sparse layers of a model have fused, by layer."""
    modules, found = dict(model.named_modules(remove_duplicate=False)), dict[nn.Module, FusedActivation]()
    for name, module in model.named_modules():
        if isinstance(module, FusedActivation):
            layer = modules.get(module.find_layer(name) or "")
            if isinstance(layer, SparseLayer) and layer.activation == module.kind:
                found[layer] = module
    return found


@contextmanager
def as_fused(model: nn.Module, fused: Mapping[str, str], kinds: Mapping[str, str]) -> Iterator[None]:
    """Give a model the activations of one in which some were fused, and no others; undone if the body raises.

    Args:
        model: the architecture, with activations in their places or fused.
        fused: names of each activation that was fused and of its layer.
        kinds: activation of each sparse layer, by its name.

    Raises:
        ValueError: the model has no such activation, or one has hooks, which would be lost.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements, kept = dict[nn.Module, nn.Module](), set[nn.Module]()
    for name, layer in fused.items():
        found = modules.get(name)
        activation = found.original() if isinstance(found, FusedActivation) else found
        if found is None or activation is None or kind_of(activation) != kinds[layer]:
            what = "none of that name" if activation is None else type(activation).__name__
            raise ValueError(f"{name}: expected the activation {kinds[layer]} in the model, found {what}")
        if isinstance(found, FusedActivation) and found.find_layer(name) == layer:
            kept.add(found)
        else:
            replacements[found] = FusedActivation(activation, layer, name)
    for found in modules.values():
        if isinstance(found, FusedActivation) and found not in replacements and found not in kept:
            replacements[found] = found.original()
    for name, found in modules.items():
        if found in replacements and has_hooks(found):
            raise ValueError(f"{name}: has to be replaced, but has hooks, which would be lost; remove them first")
    replace(model, replacements)
    try:
        yield
    except BaseException:
        replace(model, {new: old for old, new in replacements.items()})
        raise
