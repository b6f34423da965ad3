"""What a model's layers see: Gram matrices of their inputs, streamed over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .reconstruct import dampen
from .rows import CalibratedLayer, is_calibrated, reading, rows, width
from .watch import call, undisturbed, watched

PANEL = 256
"""Rows of a Gram matrix that are computed at once: wide enough for full speed."""

Progress = Callable[[int, "int | None"], None]
"""Called as ``progress(batches done, batches in all or None where unknown)``."""


class SharingError(ValueError):
    """Layers that shared one matrix went apart, and what it holds cannot be told apart any more."""


@dataclass(eq=False)
class InputStatistics:
    """Second moments of one input that one or several layers read.

    Attributes:
        gram: ``X.T @ X``, ``[in, in]`` float32, ``X`` being all tokens that were seen.
        calls: how many calls of a layer were added.
    """

    gram: Tensor
    calls: int = 0

    @property
    def hessian(self) -> Tensor:
        """The damped Gram matrix, ``[in, in]`` float32, made anew at each access."""
        return dampen(self.gram)

    @cached_property
    def inverse(self) -> Tensor:
        """Inverse of ``hessian``, ``[in, in]`` float32. Computed once in float64: all scores hang on it."""
        factor = torch.linalg.cholesky(self.hessian.double())
        return torch.cholesky_inverse(factor).float()

    def add(self, x: Tensor) -> None:
        """Count inputs ``[tokens, in]``."""
        # The upper triangle is enough, so a row of panels saves nearly half of the work.
        for start in range(0, len(self.gram), PANEL):
            panel = slice(start, start + PANEL)
            self.gram[panel, start:].addmm_(x[:, panel].T, x[:, start:])

    def finish(self) -> None:
        """Fill the lower triangle from the upper one."""
        self.gram = self.gram.triu() + self.gram.triu(1).T


class Calibration:
    """Statistics of layer inputs, collected once and good for any number of pruning runs.

    Memory: one float32 ``[in, in]`` matrix for each input, and as much again once scores were
    computed. Layers that read the same tensor, such as query, key and value, share theirs.

    ``calibration[name]`` are the :class:`InputStatistics` of a layer.
    """

    def __init__(self, statistics: Mapping[str, InputStatistics]) -> None:
        self._statistics = dict(statistics)

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        inputs: Iterable[Any],
        layers: Mapping[str, CalibratedLayer] | None = None,
        *,
        share: bool = True,
        progress: Progress | None = None,
    ) -> Calibration:
        """Run the model over calibration data and keep the Gram matrix of each layer's input.

        The model runs in eval mode without gradients; its training flags, hooks and weights, and the
        random states, are afterwards as they were, whatever happens.

        Args:
            model: any module.
            inputs: batches: a tensor is passed as ``model(x)``, a tuple or list as ``model(*x)``, a
                mapping as ``model(**x)``. Padding counts like data, so rather leave it out. A few
                times as many tokens as the widest layer has inputs are enough.
            layers: layers to watch by name; all ``nn.Linear`` of the model, and ``nn.Conv2d`` without groups, if
                None. The rows of a convolution's matrix are what its kernel sees at each place.
            share: let layers that read the same tensor share one matrix. They must then do so in
                every batch.
            progress: called after each batch.

        Raises:
            TypeError: ``inputs`` is a single batch and not an iterable of batches.
            SharingError: layers shared an input in one batch and not in another; a ``ValueError``.
            ValueError: no batches; infinite or NaN inputs of a layer.
        """
        if isinstance(inputs, (Tensor, Mapping)) or not isinstance(inputs, Iterable):
            raise TypeError(
                f"calibration: expected an iterable of batches, got {type(inputs).__name__}; "
                "put a single batch into a list: [batch]"
            )
        if layers is None:
            layers = {name: module for name, module in model.named_modules() if is_calibrated(module)}
        total = len(inputs) if isinstance(inputs, Sized) else None
        done = 0
        recorder = _Recorder(share, layers)
        # No inference_mode in here: its tensors have no version counter, see _same.
        with undisturbed(model), watched(layers, recorder.record):
            for batch in inputs:
                call(model, batch)
                recorder.end_of_batch()
                done += 1
                if progress is not None:
                    progress(done, total)
        if not done:
            raise ValueError("calibration: there were no batches (an exhausted generator?)")
        return cls(recorder.finish())

    def __getitem__(self, layer: str) -> InputStatistics:
        """Statistics of a layer's input; ``ValueError`` if the calibration data never reached it."""
        if layer not in self._statistics:
            raise ValueError(f"{layer}: the calibration data never reached this layer; was it watched, is it used?")
        return self._statistics[layer]

    def __contains__(self, layer: str) -> bool:
        return layer in self._statistics


@dataclass
class _Recorder:
    """Takes the layers' inputs in the order of the forward pass and adds each tensor up once."""

    share: bool
    layers: Mapping[str, CalibratedLayer]
    statistics: dict[str, InputStatistics] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    # The last tensor added, and where to. Holding it keeps its memory from being reused, so that equal
    # addresses below mean the same tensor.
    last: tuple[Tensor, int, InputStatistics, Hashable] | None = None

    def record(self, name: str, x: Tensor) -> None:
        if not x.numel():
            return
        layer, calls = self.layers[name], self.calls.get(name, 0)
        own = self.statistics.get(name)
        if self.share and self.last is not None and _same(x, *self.last[:2]) and self.last[3] == reading(layer):
            shared = self.last[2]
            # A newcomer joins only if it missed nothing; a member is counted once a tensor.
            if calls == shared.calls - 1 and (own is None or own is shared):
                self.statistics[name] = shared
                self.calls[name] = calls + 1
                return
        if own is None:
            columns = x.shape[-1] if isinstance(layer, nn.Linear) else width(layer)
            own = self.statistics[name] = InputStatistics(
                torch.zeros(columns, columns, dtype=torch.float32, device=x.device)
            )
        self._require_shared(name)
        for part in rows(layer, x):
            own.add(part)
        own.calls += 1
        self.calls[name] = calls + 1
        # Inference tensors do not tell when they are written to.
        self.last = None if x.is_inference() else (x, x._version, own, reading(layer))

    def end_of_batch(self) -> None:
        self.last = None
        for name in self.calls:
            self._require_shared(name)

    def finish(self) -> dict[str, InputStatistics]:
        for name, own in self.statistics.items():
            if not own.gram.diagonal().isfinite().all():
                raise ValueError(f"{name}: its calibration inputs contain NaN, infinity or numbers too large to square")
        for own in {id(own): own for own in self.statistics.values()}.values():
            own.finish()
        return self.statistics

    def _require_shared(self, name: str) -> None:
        own = self.statistics[name]
        if self.calls.get(name, 0) != own.calls:
            others = [other for other, shared in self.statistics.items() if shared is own and other != name]
            raise SharingError(
                f"{name}: read the same input as {', '.join(others)} at first, but not in a later batch; "
                "use Calibration.collect(..., share=False)"
            )


def _same(x: Tensor, other: Tensor, version: int) -> bool:
    """Whether two live tensors are the same memory, untouched since ``version``."""
    return (
        x.data_ptr() == other.data_ptr()
        and x.shape == other.shape
        and x.stride() == other.stride()
        and x.dtype == other.dtype
        and not x.is_inference()
        and x._version == version
    )
