"""Folding BatchNorm into the convolution before it, for inference: one layer less, and the sparse one has its scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .absorbed import Absorbed
from .neighbours import Neighbours, neighbours
from .plain import has_hooks
from .sparse_conv import SparseConv2d
from .surgery import Obstacles, find_sites, replace
from .unchanged import difference


class FoldedBatchNorm(Absorbed):
    """Stands where an ``nn.BatchNorm2d`` stood that is now part of the convolution before it."""

    _kind, _kind_of_layer, _became = "BatchNorm", "convolution", "folded"


@dataclass
class Pairs:
    """The convolutions of a model whose output goes through a BatchNorm.

    Attributes:
        around: how they were found.
        folds: those that can become one: names of the convolution and of the BatchNorm.
        reasons: why others cannot, by the name of the convolution.
    """

    around: Neighbours
    folds: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@contextmanager
def folded(model: nn.Module, wanted: bool, inputs: Any) -> Iterator[Mapping[str, str]]:
    """Fold what can be folded, if that is ``wanted``; undone if the body raises.

    Nothing is folded where that would change what the model computes, in its graph or on these inputs.

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
    if replacements and (reason := difference(model, pairs.around, pairs.folds.values(), {}, replacements, inputs)):
        pairs.reasons |= dict.fromkeys(pairs.folds, reason)
        pairs.folds, replacements = {}, {}
    replace(model, replacements)
    try:
        yield {conv: f"{norm} folded in{pairs.around.assumption}" for conv, norm in pairs.folds.items()} | {
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
        ValueError: the model has no such layers, or one has hooks, which would be lost; what was folded in it was not
            in the other, or into another convolution.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, FoldedBatchNorm) and (into := module.find_layer(name)) != folds.get(name):
            other = f"one folded into {folds[name]}" if name in folds else "none that is folded"
            raise ValueError(f"{name}: expected a BatchNorm folded into {into} as in the model, found {other}")
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
    """Look for pairs; where ``torch.fx`` cannot trace the model, say so of the convolutions that are in none."""
    found = neighbours(model, nn.Conv2d, nn.BatchNorm2d)
    pairs = Pairs(found)
    names = {module: name for name, module in model.named_modules()}
    sites, obstacles = {site.layer: site for site in find_sites(model)}, Obstacles(model)
    for pair in found.pairs:
        conv, norm = pair.source, pair.reader
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        reason = pair.obstacle or obstacles.of(sites[conv]) or _beyond_fixed(norm)
        if reason is None and (conv.training or norm.num_features != conv.out_channels):
            reason = "the convolution is in training mode, or has another number of channels"
        if reason is None:
            pairs.folds[names[conv]] = names[norm]
        else:
            pairs.reasons[names[conv]] = reason
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in names)
    if found.untraceable and len(pairs.folds) < norms:
        why = f"{found.untraceable}, and it is followed by none in an nn.Sequential"
        for module, name in names.items():
            if isinstance(module, nn.Conv2d) and name not in pairs.folds:
                pairs.reasons.setdefault(name, why)
    return pairs


def _beyond_fixed(norm: nn.BatchNorm2d) -> str | None:
    """Why a BatchNorm is no fixed scale and shift; None if it is."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return "it has no statistics of its own to go by, or is in training mode"
    own = type(norm).forward is not nn.BatchNorm2d.forward or type(norm).__call__ is not nn.BatchNorm2d.__call__
    if own or "forward" in vars(norm):
        return f"{type(norm).__name__} has a forward of its own"
    return "it has hooks" if has_hooks(norm) else None
