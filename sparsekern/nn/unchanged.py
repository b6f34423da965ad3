"""Whether a model computes the same once modules have become part of the layers before them: by its graphs, by runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ..prune import Calibration
from ..prune.watch import call, undisturbed
from .graphs import graphs_of, unwritten
from .neighbours import Neighbours
from .surgery import replace

Replacements = Mapping[nn.Module, nn.Module]
_Seen = TypeVar("_Seen")


def difference(
    model: nn.Module,
    around: Neighbours,
    absorbed: Collection[str],
    apart: Replacements,
    joined: Replacements,
    inputs: Any,
) -> str | None:
    """Why a model with some modules joined does not compute what it does with them apart.

    The graph from before does not tell: code may ask for the type of a module or a value, or step through a sequence.

    Args:
        model: it is left as it was.
        around: what was found in it, and in which graphs.
        absorbed: names of the modules that become part of others.
        apart: what stands for its modules where they are apart: layers with the weights of ``joined``, or nothing.
        joined: what stands for its modules where some are joined.
        inputs: of a call, in the forms of :func:`sparsekern.sparsify_`; None if there are none to compare outputs on.

    Returns:
        The reason, in words for a report; None if there is no difference to be seen.
    """
    try:
        if around.graphs:
            graphs = _with(model, joined, lambda: graphs_of(model, around.modes))
            if [graph.without(()) for graph in graphs] != [graph.without(absorbed) for graph in around.graphs]:
                return "the model's graph is another then: it goes by the types of its modules, or reads their weights"
        if inputs is not None:
            expected, found = (_with(model, modules, lambda: _run(model, inputs)) for modules in (apart, joined))
            if not _alike(found, expected):
                return "the model's outputs are others then"
    except Exception as error:
        return f"what the model computes then cannot be compared ({type(error).__name__})"
    return None


def inputs_of(example_inputs: Any, calibration: Calibration | Iterable[Any] | None) -> Any:
    """Inputs of one call of a model, out of what was given to measure it or to calibrate it with; None if nothing."""
    # A single batch in the place of several is an error that calibration reports.
    if example_inputs is None and isinstance(calibration, Iterable) and not isinstance(calibration, (Tensor, Mapping)):
        return next(iter(calibration), None)
    return example_inputs


def _with(model: nn.Module, modules: Replacements, look: Callable[[], _Seen]) -> _Seen:
    """What is seen while these modules stand in the places of others."""
    replace(model, modules)
    try:
        return look()
    finally:
        replace(model, {new: old for old, new in modules.items()})


def _run(model: nn.Module, inputs: Any) -> Any:
    # Of copies, for a module may work in place.
    copies = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, inputs)
    with undisturbed(model), unwritten(model):
        return call(model, copies)


def _alike(found: Any, expected: Any) -> bool:
    """Whether outputs are the same but for rounding."""
    (values, structure), (others, other_structure) = tree_flatten(found), tree_flatten(expected)
    return structure == other_structure and all(map(_same, values, others))


def _same(found: Any, expected: Any) -> bool:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return type(found) is type(expected)
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    if not found.dtype.is_floating_point:
        return torch.equal(found, expected)
    a, b = found.double(), expected.double()
    error = torch.where((a == b) | (a.isnan() & b.isnan()), 0, a - b).norm()
    # Half of the digits: far more than rounding costs in many layers, and far less than a missing activation does.
    size = torch.where(b.isfinite(), b, 0).norm()
    return bool(error <= torch.finfo(found.dtype).eps ** 0.5 * size)
