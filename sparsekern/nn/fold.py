"""Folding BatchNorm into the convolution before it, for inference: one layer less, and the sparse one has its scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..prune.watch import undisturbed
from .plain import has_hooks
from .sparse_conv import SparseConv2d
from .sparse_layer import SparseLayer
from .surgery import Obstacles, find_sites, held_aside, replace


class FoldedBatchNorm(nn.Identity):
    """Stands where an ``nn.BatchNorm2d`` stood that is now part of the convolution before it.

    Args:
        conv: name of that convolution, in the model that was folded.
        name: of the BatchNorm, in the same.
    """

    def __init__(self, conv: str, name: str) -> None:
        super().__init__()
        self.conv, self.name = conv, name

    def conv_beside(self, name: str) -> str:
        """Name of the convolution in a model that this module has another ``name`` in: a part, or a larger one.

        Raises:
            ValueError: the convolution is no part of that model, or stands elsewhere in it.
        """
        if name == self.name or name.endswith(f".{self.name}"):
            return name.removesuffix(self.name) + self.conv
        outer = self.name.removesuffix(name)
        if not (name and self.name.endswith(f".{name}") and self.conv.startswith(outer)):
            raise ValueError(
                f"{name}: expected the BatchNorm {self.name} beside the convolution {self.conv}, which it was folded "
                "into; save the model that was folded, or a part or wrapper of it that has both"
            )
        return self.conv.removeprefix(outer)

    def extra_repr(self) -> str:
        """Where the numbers are now, for ``print(model)``."""
        return f"into {self.conv}"


@dataclass
class Pairs:
    """The convolutions of a model whose output goes through a BatchNorm.

    Attributes:
        folds: those that can become one: names of the convolution and of the BatchNorm.
        reasons: why others cannot, by the name of the convolution.
    """

    folds: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@contextmanager
def folded(model: nn.Module, wanted: bool) -> Iterator[Mapping[str, str]]:
    """Fold what can be folded, if that is ``wanted``; undone if the body raises.

    Yields:
        For each convolution that is followed by a BatchNorm what became of the two, in words for a report.

    Raises:
        ValueError: the model is in training mode.
    """
    if not wanted:
        yield {}
        return
    if model.training:
        raise ValueError(
            "fold_batch_norm: the model is in training mode, where BatchNorm has no scale yet; call model.eval() first"
        )
    pairs = find_pairs(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for conv_name, norm_name in pairs.folds.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        replacements[conv] = fuse_conv_bn_eval(conv, norm)
        replacements[norm] = FoldedBatchNorm(conv_name, norm_name).eval()
    replace(model, replacements)
    try:
        yield {conv: f"{norm} folded in" for conv, norm in pairs.folds.items()} | {
            conv: f"BatchNorm not folded: {reason}" for conv, reason in pairs.reasons.items()
        }
    except BaseException:
        replace(model, {new: old for old, new in replacements.items()})
        raise


@contextmanager
def as_folded(model: nn.Module, folds: Mapping[str, str]) -> Iterator[None]:
    """Give a model the layers of one that was folded, with numbers still to be loaded; undone if the body raises.

    Args:
        model: the architecture, folded already or not.
        folds: names of each BatchNorm and of its convolution.

    Raises:
        ValueError: the model has no such layers, or one has hooks, which would be lost.
    """
    modules = dict(model.named_modules())
    identities: dict[nn.Module, nn.Module] = {}
    without_bias: list[nn.Conv2d | SparseConv2d] = []
    for name, conv_name in folds.items():
        norm, conv = modules.get(name), modules.get(conv_name)
        if isinstance(norm, FoldedBatchNorm):
            continue
        for found, kind, of in ((norm, nn.BatchNorm2d, name), (conv, (nn.Conv2d, SparseConv2d), conv_name)):
            if not isinstance(found, kind) or has_hooks(found):
                what = "a BatchNorm2d" if kind is nn.BatchNorm2d else "a Conv2d"
                raise ValueError(f"{of}: expected {what} without hooks in the model, found {type(found).__name__}")
        assert norm is not None and isinstance(conv, (nn.Conv2d, SparseConv2d))
        identities[norm] = FoldedBatchNorm(conv_name, name).train(norm.training)
        if conv.bias is None:
            without_bias.append(conv)
    for conv in without_bias:
        values = conv.packed.values if isinstance(conv, SparseConv2d) else conv.weight
        conv.bias = nn.Parameter(values.new_empty(conv.out_channels))
    replace(model, identities)
    try:
        yield
    except BaseException:
        replace(model, {new: old for old, new in identities.items()})
        for conv in without_bias:
            conv.bias = None
        raise


def find_pairs(model: nn.Module) -> Pairs:
    """Look for pairs in the graph of the model, or where ``torch.fx`` cannot trace it, in ``nn.Sequential``."""
    try:
        graph = _traced(model)
    except Exception as error:
        return _in_sequences(model, f"torch.fx cannot trace the model ({type(error).__name__})")
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = Counter(modules[str(node.target)] for node in calls)
    read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    candidates = []
    for node in calls:
        norm, source = modules[str(node.target)], node.args[0] if node.args else None
        if isinstance(norm, nn.BatchNorm2d) and isinstance(source, fx.Node) and source.op == "call_module":
            conv = modules[str(source.target)]
            if isinstance(conv, nn.Conv2d):
                reason = None
                if len(source.users) > 1:
                    reason = "the output of the convolution is used elsewhere too"
                elif called[conv] > 1 or called[norm] > 1:
                    reason = "one of the two is called more than once"
                elif any(name.startswith((f"{source.target}.", f"{node.target}.")) for name in read):
                    reason = "the model reads a parameter of the two past them"
                candidates.append((conv, norm, reason))
    return _judged(model, candidates)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SparseLayer) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> fx.Graph:
    """The graph of a model, whose forward may write to its attributes while it is traced."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        with undisturbed(model):
            return _Tracer().trace(model)
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _in_sequences(model: nn.Module, why: str) -> Pairs:
    """Pairs that are neighbours in a plain ``nn.Sequential``; of the other convolutions, why nobody looked further.

    A sequence is taken to be called as a whole, for nobody can see whether the model also steps through it.
    """
    candidates = []
    for sequence in model.modules():
        is_plain = type(sequence).__call__ is nn.Module.__call__ and type(sequence).forward is nn.Sequential.forward
        if is_plain and "forward" not in vars(sequence):
            for conv, norm in pairwise(sequence.children()):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    candidates.append((conv, norm, None))
    pairs = _judged(model, candidates)
    if len(pairs.folds) < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and name not in pairs.folds:
                pairs.reasons.setdefault(name, f"{why}, and it is followed by none in an nn.Sequential")
    return pairs


def _judged(model: nn.Module, candidates: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d, str | None]]) -> Pairs:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    sites = {site.layer: site for site in find_sites(model)}
    obstacles, aside, pairs = Obstacles(model), held_aside(model), Pairs()
    for conv, norm, known in candidates:
        reason = known or obstacles.of(sites[conv]) or _beyond_fixed(norm)
        if reason is None and (len(names[conv]) > 1 or len(names[norm]) > 1 or norm in aside):
            reason = "one of the two stands in several places of the model"
        if reason is None and (conv.training or norm.num_features != conv.out_channels):
            reason = "the convolution is in training mode, or has another number of channels"
        if reason is None:
            pairs.folds[names[conv][0]] = names[norm][0]
        else:
            pairs.reasons[names[conv][0]] = reason
    return pairs


def _beyond_fixed(norm: nn.BatchNorm2d) -> str | None:
    """Why a BatchNorm is no fixed scale and shift; None if it is."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return "it has no statistics of its own to go by, or is in training mode"
    own = type(norm).forward is not nn.BatchNorm2d.forward or type(norm).__call__ is not nn.BatchNorm2d.__call__
    if own or "forward" in vars(norm):
        return f"{type(norm).__name__} has a forward of its own"
    return "it has hooks" if has_hooks(norm) else None
