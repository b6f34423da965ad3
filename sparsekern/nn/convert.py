"""``sparsify_`` and ``densify_``: from a dense model to a sparse one in place, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from ..layouts import PackedWeight, matrix_shape, pack
from ..plan import ConvRequest, Request, Target, conv_kernel_name, kernel_name, refusals
from ..prune import Calibration, calibrated_weights, make_mask
from ..prune.rows import is_calibrated
from ..prune.watch import undisturbed
from ..report import LayerReport, Report
from .config import Config, Sparse, names_exactly, resolve
from .fold import folded
from .functional_conv import request_of
from .fuse import FusedActivation, Fusion, Fusions, find_fusions, fused_in
from .groups import too_narrow
from .plain import DENSE_LAYERS, DenseLayer, dense_shape, has_hooks
from .sparse_conv import SparseConv2d
from .sparse_layer import SparseLayer
from .surgery import Obstacles, Site, check_unwrapped, dense_twin, find_sites, replace, sparse_twin, uncompiled
from .trial import Call, Stopwatch, conv_call, count_calls
from .unchanged import difference, inputs_of

USUAL_CALL = Call(rows=256)
"""For which a kernel is named where no real call was observed."""


def sparsify_(
    model: nn.Module,
    config: Config,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    example_inputs: Any = None,
    calibration: Calibration | Iterable[Any] | None = None,
    *,
    fold_batch_norm: bool = False,
    fuse_activations: bool = False,
) -> Report:
    """Prune the Linear and Conv2d layers of a model and run them on sparse kernels, in place.

    With ``example_inputs`` each layer is checked and timed, eager dense against sparse, at the size at
    which the model calls it. It stays dense unless sparse is faster by more than the measurements
    scatter. The report says what became of each layer.

    Nothing is replaced before everything was checked, packed and timed: if this raises, the model is
    as it was. Random states and training flags are left alone; the new layers take over bias
    Parameters and training flags. An optimizer that holds the replaced weights must be made anew.

    Layers that stay dense, with the reason in the report: subclasses of ``nn.Linear`` and ``nn.Conv2d`` with a forward
    of their own or more than weight and bias; parametrized layers; layers with hooks, which could
    rely on a dense weight; weights that another module shares; projections that
    ``nn.MultiheadAttention`` or the fast path of ``nn.TransformerEncoderLayer`` read past the layer;
    layers that a plain attribute, list, tuple or dict of some module holds as well. So do convolutions that are
    depthwise, have groups too narrow for kernels, or are smaller than the granularity: unless a key of the config is
    the name of one, which is an error.
    Layers that are sparse already are left as they are. A module with several names is handled once.

    Folding and fusing keep what ``forward`` computes and no more: other methods that step through the modules meet
    identities. Nor does a graph show each branch that ``forward`` takes by the type of a value: with ``example_inputs``
    or batches of ``calibration``, outputs are compared, and where they differ nothing is folded or fused.

    Args:
        model: any module that contains Linear or Conv2d layers.
        config: a :class:`Sparse` for all layers, or a dict from name pattern (as in ``fnmatch``; the
            first that matches counts) to a :class:`Sparse`, or to None for layers to leave dense.
        filter_fn: called with each such layer and its name; layers for which it returns False stay
            dense.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of
            keyword arguments. The model runs once on them, in eval mode without gradients; more often with the next
            two options.
        calibration: batches in the same forms, or what :class:`sparsekern.prune.Calibration` collected
            from them on this model, which serves any number of calls. The kept weights are then chosen
            and corrected by least squares so that the layers' outputs on these batches change least
            (``Sparse.criterion`` is not used). Layers that no batch reaches stay dense, and convolutions with groups.
        fold_batch_norm: make one layer of each ``nn.Conv2d`` and the ``nn.BatchNorm2d`` that alone reads its output,
            also of those that stay dense; an identity takes the BatchNorm's place. The model must be in eval mode, and
            cannot be trained on as before: the convolution has a new weight and bias. Pairs are found with
            ``torch.fx``, or where that cannot trace the model as neighbours in an ``nn.Sequential``, which is then
            taken to be called as a whole, not module by module. The report says which convolutions were folded, which
            of them on that assumption, and why others were not.
        fuse_activations: let each layer that becomes sparse compute the activation module that alone reads its output,
            directly or behind a BatchNorm that is folded in: ``nn.ReLU``, ``nn.SiLU`` or ``nn.GELU`` (exact), of
            convolutions ``nn.ReLU6``, ``nn.Hardtanh(0, 6)`` or ``nn.Hardswish`` too. An identity takes its place, and
            :func:`densify_` puts it back. They are found as those pairs are, in training mode too; functions such as
            ``torch.relu``, and a module that is called several times, stay as they are. With ``example_inputs`` the
            dense layer is timed with its activation then. The report says which were fused, and why others were not.

    Returns:
        The report; ``print`` it.

    Raises:
        TypeError: an argument of the wrong type, or a weight of a dtype that is not packed.
        ValueError: a pattern that matches no layer; NaN in a weight; a granularity larger than the
            weight; calibration data that is unfit; a model in training mode whose BatchNorm is to be folded; a
            model that is itself such a layer or wrapped in
            DistributedDataParallel. Each names the layer.
    """
    model = uncompiled(model)
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: expected a function (module, name) -> bool, got {type(filter_fn).__name__}")
    check_unwrapped(model)
    if isinstance(model, DENSE_LAYERS):
        kind = "Linear" if isinstance(model, nn.Linear) else "Conv2d"
        raise ValueError(
            f"the model is itself an nn.{kind} and cannot be replaced in place; "
            f"use sparsekern.Sparse{kind}.from_dense(model, granularity, sparsity)"
        )
    inputs = None
    if fold_batch_norm or fuse_activations:
        with undisturbed(model):
            if isinstance(calibration, Iterator):
                calibration = list(calibration)
            inputs = inputs_of(example_inputs, calibration)
    with folded(model, fold_batch_norm, inputs) as notes:
        fusions = find_fusions(model) if fuse_activations else Fusions()
        layers = _chosen(model, config, filter_fn)
        _check_fusions(layers, model, fusions, inputs)
        _decide(layers, model, example_inputs, calibration, fusions.found)
        replacements: dict[nn.Module, nn.Module] = {}
        for layer in layers:
            remarks = [layer.row.reason, notes.get(layer.site.name)]
            if layer.packed is not None:
                replacements |= _replacements(layer, layer.packed, fusions.found.get(layer.dense))
                remarks.append(fusions.note(layer.dense))
            layer.note(reason="; ".join(filter(None, remarks)))
        target = Target.detect()
        report = Report(tuple(layer.row for layer in layers), f"{target.cpu}, {target.isa}, {target.threads} threads")
    replace(model, replacements)
    return report


def _chosen(model: nn.Module, config: Config, filter_fn: Callable[[nn.Module, str], bool] | None) -> list[_Layer]:
    """The layers of a model, with the packed weights of those that could become sparse."""
    layers = [_Layer(site) for site in find_sites(model)]
    _select(layers, model, config, filter_fn)
    _pack_by_criterion(layers)
    return layers


def _check_fusions(layers: Iterable[_Layer], model: nn.Module, fusions: Fusions, inputs: Any) -> None:
    """Give them all up, before anything is timed with them, if sparse layers with them would compute something else."""
    apart, joined, absorbed = dict[nn.Module, nn.Module](), dict[nn.Module, nn.Module](), []
    for layer in layers:
        if layer.packed is not None and (fusion := fusions.found.get(layer.dense)):
            apart |= _replacements(layer, layer.packed, None)
            joined |= _replacements(layer, layer.packed, fusion)
            absorbed.append(fusion.name)
    if joined and (reason := difference(model, fusions.around, absorbed, apart, joined, inputs)):
        fusions.give_up(reason)


def _decide(
    layers: Sequence[_Layer],
    model: nn.Module,
    example_inputs: Any,
    calibration: Calibration | Iterable[Any] | None,
    fusions: Mapping[nn.Module, Fusion],
) -> None:
    """Leave dense what does not gain, and choose weights by what the model is called with."""
    with undisturbed(model):
        if example_inputs is not None:
            _drop_slow(layers, model, example_inputs, fusions)
        if calibration is not None:
            _pack_by_calibration(layers, model, calibration)


def _replacements(layer: _Layer, packed: PackedWeight, fusion: Fusion | None) -> dict[nn.Module, nn.Module]:
    """The sparse layer in the place of the dense one, and what stands where an activation is that it has fused."""
    if fusion is None:
        return {layer.dense: sparse_twin(layer.dense, packed, layer.site.name)}
    return {
        layer.dense: sparse_twin(layer.dense, packed, layer.site.name, fusion.kind),
        fusion.module: FusedActivation(fusion.module, layer.site.name, fusion.name),
    }


def densify_(model: nn.Module) -> list[str]:
    """Put dense layers in the place of all sparse ones: ``layer.to_dense()``, with the same bias Parameter.

    An activation that ``sparsify_`` fused stands in its own place again, behind the layer.

    Returns:
        Names of the layers that were replaced.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model is itself a sparse layer or wrapped in DistributedDataParallel, or a sparse
            layer or what stands for its activation has hooks.
    """
    model = uncompiled(model)
    check_unwrapped(model)
    replacements: dict[nn.Module, nn.Module] = {}
    names, fused = [], fused_in(model)
    for site in find_sites(model):
        if isinstance(site.layer, SparseLayer):
            if not site.name:
                kind = type(site.layer).__name__
                raise ValueError(f"the model is itself a {kind} and cannot be replaced in place; use to_dense()")
            identity = fused.get(site.layer)
            if has_hooks(site.layer):
                raise ValueError(f"{site.name}: has hooks, which would be lost; remove them first")
            if identity is not None:
                if has_hooks(identity):
                    raise ValueError(f"{identity.name}: has hooks, which would be lost; remove them first")
                replacements[identity] = identity.original()
            replacements[site.layer] = dense_twin(site.layer, activation=identity is None)
            names.append(site.name)
    replace(model, replacements)
    return names


class _Layer:
    """A Linear or Conv2d layer while ``sparsify_`` decides what becomes of it.

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
        if isinstance(module, SparseLayer):
            size = module.packed.nbytes
            facts = self._facts(module.packed, USUAL_CALL)
            self.row = LayerReport(site.name, module.packed.dense_shape, True, "already sparse", **facts)
        else:
            shape = dense_shape(module)
            size = math.prod(shape) * next(module.parameters(), torch.empty(0)).dtype.itemsize
            self.row = LayerReport(site.name, shape, False)
        self.note(bytes_before=size, bytes_after=size)

    @property
    def dense(self) -> DenseLayer:
        """The module of a layer that is dense so far."""
        assert not isinstance(self.site.layer, SparseLayer)
        return self.site.layer

    def note(self, **facts: Any) -> None:
        """Write into the report."""
        self.row = dataclasses.replace(self.row, **facts)

    def keep_dense(self, reason: str) -> None:
        """Drop the intention to make the layer sparse."""
        self.wanted = self.packed = None
        self.note(sparse=False, reason=reason, bytes_after=self.row.bytes_before)

    def take(self, packed: PackedWeight, call: Call = USUAL_CALL) -> None:
        """Make ``packed`` the weight to come, for such calls."""
        self.packed = packed
        self.note(sparse=True, bytes_after=packed.nbytes, **self._facts(packed, call))

    def remark(self, *more: str) -> None:
        """Say why the back ends with kernels do not serve the packed weight, and what else there is to say."""
        self.note(reason=self.remarks(*more))

    def remarks(self, *more: str) -> str:
        """What :meth:`remark` says."""
        assert self.packed is not None
        why = [f"{backend}: {refusal}" for backend, refusal in refusals(self._request(self.packed)).items()]
        return "; ".join([*why, *more])

    def _request(self, packed: PackedWeight) -> Request | ConvRequest:
        layer = self.site.layer
        if isinstance(layer, (nn.Conv2d, SparseConv2d)):
            return request_of(packed, layer.groups)
        return Request(packed.granularity, packed.shape, packed.dtype, packed.device.type)

    def _facts(self, packed: PackedWeight, call: Call) -> dict[str, Any]:
        """What the report says about a packed weight."""
        request = self._request(packed)
        if isinstance(request, ConvRequest):
            layer = self.site.layer
            observed = conv_call(layer, packed, call) if isinstance(layer, nn.Conv2d) else None
            kernel = conv_kernel_name(request, observed)
        else:
            kernel = kernel_name(request, packed.values.numel(), call.rows)
        density = None if packed.device.type == "meta" else packed.density
        return {"granularity": packed.granularity.label, "density": density, "kernel": kernel}


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
        elif isinstance(layer.dense, nn.Conv2d) and (nonsense := _nonsense(layer.dense, wanted)):
            if names_exactly(config, layer.site.names):
                raise ValueError(f"{layer.site.name}: {nonsense}; leave it dense (None in the config)")
            layer.keep_dense(nonsense)
        else:
            layer.wanted = wanted


def _nonsense(conv: nn.Conv2d, wanted: Sparse) -> str | None:
    """Why nobody can have meant this convolution, where a rule for many layers reached it; None if somebody can."""
    if narrow := too_narrow(conv):
        return narrow
    try:
        wanted.granularity.check_shape(matrix_shape(dense_shape(conv))[0])
    except ValueError as error:
        return str(error)
    return None


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
                layer.remark("not measured: pass example_inputs")


def _pack_by_calibration(layers: Sequence[_Layer], model: nn.Module, calibration: Calibration | Iterable[Any]) -> None:
    for layer in layers:
        if layer.wanted is not None and not is_calibrated(layer.dense):
            layer.keep_dense("has groups, which calibration does not cover: prune it without")
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


def _drop_slow(
    layers: Iterable[_Layer], model: nn.Module, example_inputs: Any, fusions: Mapping[nn.Module, Fusion]
) -> None:
    """Time each layer as the model calls it, and leave dense what is faster so."""
    chosen = [layer for layer in layers if layer.wanted is not None]
    seen = count_calls(model, {layer.site.name: layer.dense for layer in chosen}, example_inputs)
    stopwatch = Stopwatch()
    for layer in chosen:
        assert layer.wanted is not None and layer.packed is not None
        packed, calls = layer.packed, seen[layer.site.name]
        layer.note(calls=calls.total(), tokens=sum(call.rows * count for call, count in calls.items()))
        if not layer.row.tokens:
            reason = "example_inputs never reached it"
            if layer.wanted.only_if_faster:
                layer.keep_dense(reason)
            else:
                layer.remark(f"not measured: {reason}")
            continue
        layer.take(packed, max(calls, key=lambda call: call.rows))
        layer.note(**stopwatch.time(layer.dense, packed, layer.site.name, calls, fusions.get(layer.dense)))
        why = layer.remarks()
        if layer.row.pays or not layer.wanted.only_if_faster:
            layer.note(reason=why)
        else:
            layer.keep_dense(f"{layer.row.gain} at this size" + (f" ({why})" if why else ""))


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Put the layer's name in front of errors."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{layer}: {error}") from error
