"""Pruning of a model's layers with calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..layouts import Granularity, check_weight, matrix_of, matrix_shape, weight_of
from .calibrate import Calibration, SharingError
from .masks import check_sparsity
from .reconstruct import group_scores, reconstruct
from .rows import CalibratedLayer, width


class Wanted(Protocol):
    """What a layer shall become, such as ``sk.Sparse``."""

    @property
    def granularity(self) -> Granularity: ...

    @property
    def sparsity(self) -> float | None: ...


def calibrated_weights(
    model: nn.Module,
    layers: Mapping[str, CalibratedLayer],
    wanted: Mapping[str, Wanted],
    calibration: Calibration | Iterable[Any],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Masks, and weights that make up for what the masks drop, for several layers of a model.

    Every layer is pruned by itself to keep its own outputs on the dense model's inputs, so one
    :class:`Calibration` serves any number of calls. The model is left as it was. Batches are run a
    second time where layers share an input in some of them only; those of an iterator are kept for it.

    Args:
        model: the dense model.
        layers: its layers by name; those in ``wanted`` are pruned.
        wanted: granularity and sparsity for each layer to prune.
        calibration: ready statistics, or batches as :meth:`Calibration.collect` takes them.

    Returns:
        For each layer in ``wanted`` that the calibration data reached: weight (zero where dropped, the layer's
        shape and dtype) and mask (bool, True = kept).

    Raises:
        TypeError, ValueError: a weight that its granularity cannot hold, a sparsity outside [0, 1),
            calibration data of another width or too ill-conditioned to solve for weights. Each names
            the layer.
    """
    for name, want in wanted.items():
        check_weight(layers[name].weight, want.granularity, name)
        check_sparsity(want.sparsity, f"{name}: sparsity")
    if not isinstance(calibration, Calibration):
        calibration = _collect(model, calibration, {name: layers[name] for name in wanted})
    wanted = {name: want for name, want in wanted.items() if name in calibration}
    for name in wanted:
        found, expected = len(calibration[name].gram), width(layers[name])
        if found != expected:
            raise ValueError(f"{name}: expected calibration inputs of width {expected}, got {found}")
    with torch.no_grad():
        return {name: _prune(layers[name].weight, calibration, name, want) for name, want in wanted.items()}


def _collect(model: nn.Module, batches: Iterable[Any], layers: Mapping[str, CalibratedLayer]) -> Calibration:
    """Statistics with what can be shared, or without where a model calls its layers now so, now so."""
    if isinstance(batches, Iterator):
        batches = list(batches)
    try:
        return Calibration.collect(model, batches, layers)
    except SharingError:
        return Calibration.collect(model, batches, layers, share=False)


def _prune(weight: Tensor, calibration: Calibration, name: str, want: Wanted) -> tuple[Tensor, Tensor]:
    seen = calibration[name]
    hessian = seen.hessian.to(weight.device)
    try:
        matrix, (_, kernel) = matrix_of(weight), matrix_shape(weight.shape)
        scores = group_scores(matrix, hessian, seen.inverse.to(weight.device), want.granularity)
        mask = want.granularity.mask(scores, want.sparsity)
        return weight_of(reconstruct(matrix, hessian, mask), kernel), weight_of(mask, kernel)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name}: expected calibration inputs whose Gram matrix can be factorised, but {error}; "
            "use more or other batches, or prune this layer without calibration"
        ) from error
