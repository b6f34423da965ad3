"""Which module of a model reads the output of which other, and whether the two could become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

from ..prune.watch import undisturbed
from .absorbed import Absorbed
from .plain import has_hooks
from .sparse_layer import SparseLayer
from .surgery import held_aside

Kinds = type[nn.Module] | tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class Pair:
    """A module and one that reads its output.

    Attributes:
        source: the module.
        reader: the one that reads.
        obstacle: why they cannot become one, if others read the output too or either of them is used otherwise.
    """

    source: nn.Module
    reader: nn.Module
    obstacle: str | None


@dataclass(frozen=True)
class Neighbours:
    """The pairs of a model.

    Attributes:
        pairs: in the order in which they are called.
        untraceable: why no more than neighbours in ``nn.Sequential`` are known; None if all are.
    """

    pairs: tuple[Pair, ...]
    untraceable: str | None = None


def neighbours(model: nn.Module, sources: Kinds, readers: Kinds, modes: Sequence[bool] = (False,)) -> Neighbours:
    """Look for pairs in the graph of the model, or where ``torch.fx`` cannot trace it, in ``nn.Sequential``.

    A sequence is taken to be called as a whole then, for nobody can see whether the model also steps through it.

    Args:
        model: where to look; it is left as it was.
        sources: classes of the modules whose output is read.
        readers: classes of those that read.
        modes: of training in which the two must belong together.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    untraceable, found = None, dict[tuple[nn.Module, nn.Module], str | None]()
    try:
        graphs = [_traced(model, training) for training in modes]
    except Exception as error:
        untraceable = f"torch.fx cannot trace the model ({type(error).__name__})"
        found = dict.fromkeys(_in_sequences(model, sources, readers))
    else:
        found = _in_all([_Calls(graph, modules) for graph in graphs], sources, readers)
    places, aside = Counter(modules.values()), held_aside(model)
    for (source, reader), obstacle in found.items():
        if obstacle is None and (places[source] > 1 or places[reader] > 1 or reader in aside):
            found[source, reader] = "one of the two stands in several places of the model"
    return Neighbours(tuple(Pair(*pair, obstacle) for pair, obstacle in found.items()), untraceable)


class _Tracer(fx.Tracer):
    def __init__(self, training: bool) -> None:
        super().__init__()
        # Layers that count or average in training would do so now, in numbers of the model.
        self.proxy_buffer_attributes = training

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, Absorbed):
            return has_hooks(m)
        return isinstance(m, SparseLayer) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Graph:
    """What ``torch.fx`` saw, and the values of it that the model keeps in attributes."""

    nodes: Sequence[fx.Node]
    kept: frozenset[fx.Node]


def _traced(model: nn.Module, training: bool) -> _Graph:
    """The graph of a model, whose forward may write to its attributes while it is traced."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        with undisturbed(model):
            for module, *_ in before:
                module.training = training
            graph = _Tracer(training).trace(model)
        values = [value for module, *_ in before for value in vars(module).values()]
        return _Graph(list(graph.nodes), frozenset(value.node for value in values if isinstance(value, fx.Proxy)))
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


class _Calls:
    """The calls of modules in a graph."""

    def __init__(self, graph: _Graph, modules: Mapping[str, nn.Module]) -> None:
        self._modules, self._kept = modules, graph.kept
        self._nodes = [node for node in graph.nodes if node.op == "call_module"]
        self.count = Counter(modules[str(node.target)] for node in self._nodes)
        self._read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]

    def pairs(self, sources: Kinds, readers: Kinds) -> dict[tuple[nn.Module, nn.Module], str | None]:
        """The pairs, and what keeps each from becoming one."""
        found = {}
        for node in self._nodes:
            reader, read = self._modules[str(node.target)], node.args[0] if node.args else None
            if isinstance(reader, readers) and isinstance(read, fx.Node) and read.op == "call_module":
                source = self._modules[str(read.target)]
                if isinstance(source, sources):
                    found[source, reader] = self._obstacle(read, node)
        return found

    def _obstacle(self, source: fx.Node, reader: fx.Node) -> str | None:
        module, names = self._modules[str(source.target)], (str(source.target), str(reader.target))
        if len(source.users) > 1 or source in self._kept:
            kind = "convolution" if isinstance(module, nn.Conv2d) else "layer"
            return f"the output of the {kind} is used elsewhere too"
        if any(self.count[self._modules[name]] > 1 for name in names):
            return "one of the two is called more than once"
        if any(name.startswith((f"{names[0]}.", f"{names[1]}.")) for name in self._read):
            return "the model reads a parameter of the two past them"
        if any(has_hooks(self._modules[name]) for name in _around_one(*names)):
            return "a module around one of the two has hooks, which see what is between them"
        return None


def _around_one(first: str, second: str) -> Iterator[str]:
    """Names of the modules that hold one of two and not the other."""
    for name, other in ((first, second), (second, first)):
        parts = name.split(".")
        for length in range(1, len(parts)):
            if not other.startswith(f"{'.'.join(parts[:length])}."):
                yield ".".join(parts[:length])


def _in_all(graphs: Sequence[_Calls], sources: Kinds, readers: Kinds) -> dict[tuple[nn.Module, nn.Module], str | None]:
    """The pairs of several graphs; what is called in one of them must belong together there."""
    in_each = [calls.pairs(sources, readers) for calls in graphs]
    found = {pair: obstacle for pairs in in_each for pair, obstacle in pairs.items()}
    for calls, pairs in zip(graphs, in_each, strict=True):
        for pair, obstacle in found.items():
            is_called = any(calls.count[module] for module in pair)
            apart = "they are called differently in training and in eval mode" if is_called else None
            found[pair] = obstacle or pairs.get(pair, apart)
    return found


def _in_sequences(model: nn.Module, sources: Kinds, readers: Kinds) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs that are neighbours in a plain ``nn.Sequential``."""
    for sequence in model.modules():
        is_plain = type(sequence).__call__ is nn.Module.__call__ and type(sequence).forward is nn.Sequential.forward
        if is_plain and "forward" not in vars(sequence):
            # Not children(), which leaves out what stands in it a second time.
            steps = [step for step in sequence._modules.values() if not isinstance(step, Absorbed) or has_hooks(step)]
            for source, reader in pairwise(steps):
                if isinstance(source, sources) and isinstance(reader, readers):
                    yield source, reader
