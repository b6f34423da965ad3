"""Which module of a model reads the output of which other, and whether the two could become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

from .absorbed import Absorbed
from .graphs import Graph, graphs_of
from .plain import has_hooks
from .surgery import held_aside

Kinds = type[nn.Module] | tuple[type[nn.Module], ...]
_APART = "they are called differently in training and in eval mode, or with and without optional arguments"


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
        modes: of training in which they were looked for.
        graphs: in which they were found; none where the model cannot be traced.
    """

    pairs: tuple[Pair, ...]
    untraceable: str | None = None
    modes: Sequence[bool] = ()
    graphs: Sequence[Graph] = ()

    @property
    def assumption(self) -> str:
        """What the pairs rest on, to be added to what a report says of one."""
        return " (assumed: the sequence is called as a whole)" if self.untraceable else ""


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
    untraceable, graphs = None, list[Graph]()
    found: dict[tuple[nn.Module, nn.Module], str | None]
    try:
        graphs = graphs_of(model, modes)
    except Exception as error:
        untraceable = f"torch.fx cannot trace the model ({type(error).__name__})"
        found = dict.fromkeys(_in_sequences(model, sources, readers))
    else:
        found = _in_all([_Calls(graph, modules) for graph in graphs], sources, readers)
    places, aside = Counter(modules.values()), held_aside(model)
    for (source, reader), obstacle in found.items():
        if obstacle is None and (places[source] > 1 or places[reader] > 1 or reader in aside):
            found[source, reader] = "one of the two stands in several places of the model"
    return Neighbours(tuple(Pair(*pair, obstacle) for pair, obstacle in found.items()), untraceable, modes, graphs)


class _Calls:
    """The calls of modules in a graph."""

    def __init__(self, graph: Graph, modules: Mapping[str, nn.Module]) -> None:
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
            found[pair] = obstacle or pairs.get(pair, _APART if is_called else None)
    return found


def _in_sequences(model: nn.Module, sources: Kinds, readers: Kinds) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs that are neighbours in a plain ``nn.Sequential``."""
    for sequence in model.modules():
        kind = type(sequence)  # of what is scripted, it has no forward
        is_plain = kind.__call__ is nn.Module.__call__ and getattr(kind, "forward", None) is nn.Sequential.forward
        if is_plain and "forward" not in vars(sequence):
            # Not children(), which leaves out what stands in it a second time.
            steps = [step for step in sequence._modules.values() if not isinstance(step, Absorbed) or has_hooks(step)]
            for source, reader in pairwise(steps):
                if isinstance(source, sources) and isinstance(reader, readers):
                    yield source, reader
