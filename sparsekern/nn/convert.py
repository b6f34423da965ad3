"""``sparsify_`` and ``densify_``: from a dense model to a sparse one in place, and back."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..layouts import PackedWeight, pack
from ..plan import Request, Target, Timing, kernel_name, refusals, time_linear
from ..prune import Calibration, calibrated_weights, make_mask
from ..prune.watch import call, undisturbed, watched
from ..report import LayerReport, Report
from .config import Config, Sparse, resolve
from .plain import has_hooks
from .sparse_linear import SparseLinear
from .surgery import Obstacles, Site, check_unwrapped, dense_twin, find_sites, replace, sparse_twin, uncompiled

MANY_TOKENS = 256
"""Rows of the activation for which a kernel is named where the real number was not observed."""


def sparsify_(
    model: nn.Module,
    config: Config,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    example_inputs: Any = None,
    calibration: Calibration | Iterable[Any] | None = None,
) -> Report:
    """Prune the Linear layers of a model and run them on sparse kernels, in place.

    With ``example_inputs`` each layer is checked and timed, eager dense against sparse, at the size at
    which the model calls it. It stays dense unless sparse is faster by more than the measurements
    scatter. The report says what became of each layer.

    Nothing is replaced before everything was checked, packed and timed: if this raises, the model is
    as it was. Random states and training flags are left alone; the new layers take over bias
    Parameters and training flags. An optimizer that holds the replaced weights must be made anew.

    Layers that stay dense, with the reason in the report: subclasses of ``nn.Linear`` with a forward
    of their own or more than weight and bias; parametrized layers; layers with hooks, which could
    rely on a dense weight; weights that another module shares; projections that
    ``nn.MultiheadAttention`` or the fast path of ``nn.TransformerEncoderLayer`` read past the layer;
    layers that a plain attribute, list, tuple or dict of some module holds as well.
    Layers that are sparse already are left as they are. A module with several names is handled once.

    Args:
        model: any module that contains Linear layers.
        config: a :class:`Sparse` for all layers, or a dict from name pattern (as in ``fnmatch``; the
            first that matches counts) to a :class:`Sparse`, or to None for layers to leave dense.
        filter_fn: called with each Linear layer and its name; layers for which it returns False stay
            dense.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of
            keyword arguments. The model runs once on them, in eval mode without gradients.
        calibration: batches in the same forms, or what :class:`sparsekern.prune.Calibration` collected
            from them on this model, which serves any number of calls. The kept weights are then chosen
            and corrected by least squares so that the layers' outputs on these batches change least
            (``Sparse.criterion`` is not used). Layers that no batch reaches stay dense.

    Returns:
        The report; ``print`` it.

    Raises:
        TypeError: an argument of the wrong type, or a weight of a dtype that is not packed.
        ValueError: a pattern that matches no layer; NaN in a weight; a granularity larger than the
            weight; calibration data that is unfit; a model that is itself an ``nn.Linear`` or wrapped in
            DistributedDataParallel. Each names the layer.
    """
    model = uncompiled(model)
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: expected a function (module, name) -> bool, got {type(filter_fn).__name__}")
    check_unwrapped(model)
    sites = find_sites(model)
    if sites and sites[0].layer is model and isinstance(model, nn.Linear):
        raise ValueError(
            "the model is itself an nn.Linear and cannot be replaced in place; "
            "use sparsekern.SparseLinear.from_dense(model, granularity, sparsity)"
        )
    layers = [_Layer(site) for site in sites]
    _select(layers, model, config, filter_fn)
    _pack_by_criterion(layers)
    with undisturbed(model):
        if example_inputs is not None:
            _drop_slow(layers, model, example_inputs)
        if calibration is not None:
            _pack_by_calibration(layers, model, calibration)
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        if layer.packed is not None:
            replacements[layer.dense] = sparse_twin(layer.dense, layer.packed, layer.site.name)
    target = Target.detect()
    report = Report(tuple(layer.row for layer in layers), f"{target.cpu}, {target.isa}, {target.threads} threads")
    replace(model, replacements)
    return report


def densify_(model: nn.Module) -> list[str]:
    """Put dense layers in the place of all sparse ones: ``layer.to_dense()``, with the same bias Parameter.

    Returns:
        Names of the layers that were replaced.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model is itself a sparse layer or wrapped in DistributedDataParallel, or a sparse
            layer has hooks.
    """
    model = uncompiled(model)
    check_unwrapped(model)
    replacements: dict[nn.Module, nn.Module] = {}
    names = []
    for site in find_sites(model):
        if isinstance(site.layer, SparseLinear):
            if not site.name:
                raise ValueError("the model is itself a SparseLinear and cannot be replaced in place; use to_dense()")
            if has_hooks(site.layer):
                raise ValueError(f"{site.name}: has hooks, which would be lost; remove them first")
            replacements[site.layer] = dense_twin(site.layer)
            names.append(site.name)
    replace(model, replacements)
    return names


class _Layer:
    """A Linear layer while ``sparsify_`` decides what becomes of it.

    Attributes:
        site: the module and its places in the model.
        wanted: its configuration, as long as it is to become sparse; else None.
        packed: the weight that will take the place of the dense one; None if it stays as it is.
        row: what the report will say.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.wanted: Sparse | None = None
        self.packed: PackedWeight | None = None
        module = site.layer
        if isinstance(module, SparseLinear):
            size = module.packed.nbytes
            facts = _facts(module.packed, MANY_TOKENS)
            self.row = LayerReport(site.name, module.shape, True, "already sparse", **facts)
        else:
            shape = (module.out_features, module.in_features)
            size = shape[0] * shape[1] * next(module.parameters(), torch.empty(0)).dtype.itemsize
            self.row = LayerReport(site.name, shape, False)
        self.note(bytes_before=size, bytes_after=size)

    @property
    def dense(self) -> nn.Linear:
        """The module of a layer that is dense so far."""
        assert isinstance(self.site.layer, nn.Linear)
        return self.site.layer

    def note(self, **facts: Any) -> None:
        """Write into the report."""
        self.row = dataclasses.replace(self.row, **facts)

    def keep_dense(self, reason: str) -> None:
        """Drop the intention to make the layer sparse."""
        self.wanted = self.packed = None
        self.note(sparse=False, reason=reason, bytes_after=self.row.bytes_before)

    def take(self, packed: PackedWeight) -> None:
        """Make ``packed`` the weight to come."""
        self.packed = packed
        self.note(sparse=True, bytes_after=packed.nbytes, **_facts(packed, MANY_TOKENS))


def _select(
    layers: Sequence[_Layer], model: nn.Module, config: Config, filter_fn: Callable[[nn.Module, str], bool] | None
) -> None:
    """Give each layer its configuration, or the reason why it stays dense."""
    obstacles = Obstacles(model)
    for layer, (wanted, reason) in zip(layers, resolve(config, [layer.site.names for layer in layers]), strict=True):
        if layer.row.sparse:
            continue
        if wanted is None:
            layer.keep_dense(reason)
        elif filter_fn is not None and not any(filter_fn(layer.dense, name) for name in layer.site.names):
            layer.keep_dense("filter_fn leaves it out")
        elif obstacle := obstacles.of(layer.site):
            layer.keep_dense(obstacle)
        else:
            layer.wanted = wanted


def _pack_by_criterion(layers: Iterable[_Layer]) -> None:
    for layer in layers:
        if layer.wanted is not None:
            with _naming(layer.site.name):
                weight, granularity = layer.dense.weight, layer.wanted.granularity
                if weight.device.type == "meta":
                    raise ValueError("weight is on the meta device, without values; load the model first")
                mask = make_mask(weight, granularity, layer.wanted.sparsity, layer.wanted.criterion)
                packed = pack(weight, granularity, mask)
                layer.take(packed)
                layer.note(reason=_remarks(packed, "not measured: pass example_inputs"))


def _pack_by_calibration(layers: Iterable[_Layer], model: nn.Module, calibration: Calibration | Iterable[Any]) -> None:
    chosen = {layer.site.name: layer for layer in layers if layer.wanted is not None}
    if not chosen:
        return
    modules = {name: layer.dense for name, layer in chosen.items()}
    wanted = {name: cast(Sparse, layer.wanted) for name, layer in chosen.items()}
    found = calibrated_weights(model, modules, wanted, calibration)
    for name, layer in chosen.items():
        if name not in found:
            layer.keep_dense("calibration never reached it")
            continue
        with _naming(name):
            weight, mask = found[name]
            layer.take(pack(weight, wanted[name].granularity, mask))


def _drop_slow(layers: Iterable[_Layer], model: nn.Module, example_inputs: Any) -> None:
    """Time each layer as the model calls it, and leave dense what is faster so."""
    chosen = [layer for layer in layers if layer.wanted is not None]
    seen = _count_tokens(model, {layer.site.name: layer.dense for layer in chosen}, example_inputs)
    stopwatch = _Stopwatch()
    for layer in chosen:
        assert layer.wanted is not None and layer.packed is not None
        packed, calls = layer.packed, seen[layer.site.name]
        layer.note(calls=calls.total(), tokens=sum(tokens * count for tokens, count in calls.items()))
        if not layer.row.tokens:
            reason = "example_inputs never reached it"
            if layer.wanted.only_if_faster:
                layer.keep_dense(reason)
            else:
                layer.note(reason=_remarks(packed, f"not measured: {reason}"))
            continue
        layer.note(**_facts(packed, max(calls)), **stopwatch.time(layer, packed, calls))
        why = _remarks(packed)
        if layer.row.pays or not layer.wanted.only_if_faster:
            layer.note(reason=why)
        else:
            layer.keep_dense(f"{layer.row.gain} at this size" + (f" ({why})" if why else ""))


def _count_tokens(model: nn.Module, layers: Mapping[str, nn.Linear], inputs: Any) -> dict[str, Counter[int]]:
    """Run the model once: for each layer, how many of its calls had how many rows of activations."""
    seen = {name: Counter[int]() for name in layers}

    def count(name: str, x: Tensor) -> None:
        seen[name][x.numel() // layers[name].in_features] += 1

    with watched(layers, count):
        call(model, inputs)
    return seen


class _Stopwatch:
    """Times layers of a model, equal ones once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Timing] = {}

    def time(self, layer: _Layer, packed: PackedWeight, calls: Counter[int]) -> dict[str, float]:
        """What the report says about all the calls of a layer in one pass of the model."""
        timings = {tokens: self._time_once(layer, packed, tokens) for tokens in calls if tokens}
        dense = sum(timing.dense * calls[tokens] for tokens, timing in timings.items())
        sparse = sum(timing.sparse * calls[tokens] for tokens, timing in timings.items())
        # Each size counts by its time: equal to dense / sparse where nothing disturbed the rounds.
        speedup = sum(timing.speedup * timing.sparse * calls[tokens] for tokens, timing in timings.items()) / sparse
        return {
            "dense_us": dense * 1e6,
            "sparse_us": sparse * 1e6,
            "speedup": speedup,
            "spread": max(timing.spread for timing in timings.values()),
            "rounds": min(timing.rounds for timing in timings.values()),
        }

    def _time_once(self, layer: _Layer, packed: PackedWeight, tokens: int) -> Timing:
        density, bias = round(packed.density, 2), layer.dense.bias is not None
        key = (_request(packed), packed.device, tokens, density, bias, torch.get_num_threads())
        if key not in self._known:
            self._known[key] = time_linear(layer.dense, sparse_twin(layer.dense, packed, layer.site.name), tokens)
        return self._known[key]


def _request(packed: PackedWeight) -> Request:
    return Request(packed.granularity, packed.shape, packed.dtype, packed.device.type)


def _facts(packed: PackedWeight, tokens: int) -> dict[str, Any]:
    """What the report says about a packed weight."""
    kernel = kernel_name(_request(packed), packed.values.numel(), tokens)
    density = None if packed.device.type == "meta" else packed.density
    return {"granularity": packed.granularity.label, "density": density, "kernel": kernel}


def _remarks(packed: PackedWeight, *more: str) -> str:
    """Why the back ends with kernels do not serve a packed weight, and what else there is to say about it."""
    why = [f"{backend}: {refusal}" for backend, refusal in refusals(_request(packed)).items()]
    return "; ".join([*why, *more])


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Put the layer's name in front of errors."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{layer}: {error}") from error
