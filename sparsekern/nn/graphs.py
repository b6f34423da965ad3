"""What a model calls, as ``torch.fx`` sees it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from ..prune.watch import undisturbed
from .absorbed import Absorbed
from .plain import has_hooks
from .sparse_layer import SparseLayer


@dataclass(frozen=True)
class Graph:
    """What ``torch.fx`` saw, and the values of it that the model keeps in attributes."""

    nodes: Sequence[fx.Node]
    kept: frozenset[fx.Node]

    def without(self, names: Collection[str]) -> list[str]:
        """What is computed, in words that two graphs of a model can be compared by.

        Args:
            names: of modules that hand on what they read, so that it is as if they were not there.
        """
        places, said = dict[fx.Node, str](), list[str]()
        for node in self.nodes:
            if node.op == "call_module" and node.target in names:
                read = node.args[0]
                assert isinstance(read, fx.Node)
                places[node] = places[read]
            else:
                places[node] = f"%{len(said)}"
                said.append(repr((node.op, node.target, map_arg((node.args, node.kwargs), places.__getitem__))))
        return [*said, *sorted(places[node] for node in self.kept)]


def graphs_of(model: nn.Module, modes: Sequence[bool]) -> list[Graph]:
    """The graphs of a model in these modes of training, with all its arguments given and with defaults in their places.

    A default is often None, which says by itself which branch a forward takes; what is traced in its place is not.

    Raises:
        Exception: of any kind, where ``torch.fx`` cannot trace the model.
    """
    parameters = inspect.signature(inspect.unwrap(type(model).forward)).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return [_traced(model, training, given) for training in modes for given in ([{}, defaults] if defaults else [{}])]


@contextmanager
def unwritten(model: nn.Module) -> Iterator[None]:
    """Attributes and buffers that a forward writes to are put back, whatever happens."""
    # What is scripted has its attributes in C++, and its own words for them.
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    try:
        for module, _, buffers in before:
            # Packed tensors are as large as a model may be, and no forward writes to them.
            if not isinstance(module, SparseLayer):
                copies = {name: t.detach().clone() for name, t in buffers.items() if not (t is None or _is_lazy(t))}
                module._buffers.update(copies)
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _is_lazy(tensor: Any) -> bool:
    return bool(nn.parameter.is_lazy(tensor))


class _Tracer(fx.Tracer):
    def __init__(self, training: bool) -> None:
        super().__init__()
        # Layers that count or average in training would do so now, in numbers of the model.
        self.proxy_buffer_attributes = training

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, Absorbed):
            return has_hooks(m)
        return isinstance(m, SparseLayer) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module, training: bool, given: dict[str, Any]) -> Graph:
    """The graph of a model, whose forward may write to its attributes while it is traced."""
    with undisturbed(model), unwritten(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a graph holds for these arguments only, which is what is wanted
        for module in model.modules():
            module.training = training
        nodes = list(_Tracer(training).trace(model, given or None).nodes)
        values = [value for module in model.modules() for value in tree_leaves(vars(module))]
        kept = {value.node for value in values if isinstance(value, fx.Proxy)}
        return Graph(nodes, frozenset(kept & set(nodes)))
