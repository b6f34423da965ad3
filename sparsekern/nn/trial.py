"""Trying a packed layer where it would stand: how a model calls it, and what it gains there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layouts import PackedWeight
from ..ops_conv import layout_of
from ..plan import ConvCall, Timing, time_conv2d, time_linear
from ..prune.watch import call, watched
from .fuse import Fusion
from .plain import DenseLayer
from .sparse_conv import SparseConv2d
from .surgery import sparse_twin


@dataclass(frozen=True)
class Call:
    """What the time of a layer's call depends on.

    Attributes:
        rows: of its activation: tokens, or pixels of the output of a convolution.
        images: shape of a convolution's input, ``[batch, channels, height, width]``; empty for a linear layer.
        layout: how that lies in memory.
    """

    rows: int
    images: tuple[int, ...] = ()
    layout: torch.memory_format = torch.contiguous_format


def count_calls(model: nn.Module, layers: Mapping[str, DenseLayer], inputs: Any) -> dict[str, Counter[Call]]:
    """Run the model once and count each layer's calls."""
    seen = {name: Counter[Call]() for name in layers}

    def count(name: str, x: Tensor) -> None:
        seen[name][_call_of(layers[name], x)] += 1

    with watched(layers, count):
        call(model, inputs)
    return seen


def _call_of(layer: DenseLayer, x: Tensor) -> Call:
    if isinstance(layer, nn.Linear):
        return Call(x.numel() // layer.in_features)
    images = x if x.dim() == 4 else x.unsqueeze(0)
    with torch.no_grad():
        pixels = layer._conv_forward(images.new_empty(images.shape, device="meta"), layer.weight.to("meta"), None)
    return Call(pixels.numel() // layer.out_channels, tuple(images.shape), layout_of(images))


def conv_call(conv: nn.Conv2d, packed: PackedWeight, call: Call) -> ConvCall | None:
    """What decides which kernel runs a call of a convolution, were it packed; None for one that was not observed."""
    if not call.images:
        return None
    twin = sparse_twin(conv, packed, "")
    assert isinstance(twin, SparseConv2d)
    return twin.called_with(call.images, call.layout)


class Stopwatch:
    """Times layers of a model, equal ones once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Timing] = {}

    def time(
        self, dense: DenseLayer, packed: PackedWeight, name: str, calls: Counter[Call], fusion: Fusion | None = None
    ) -> dict[str, float]:
        """What the report says about all the calls of a layer, and of its activation, in one pass of the model."""
        timings = {call: self._time_once(dense, packed, name, call, fusion) for call in calls if call.rows}
        dense_time = sum(timing.dense * calls[call] for call, timing in timings.items())
        sparse_time = sum(timing.sparse * calls[call] for call, timing in timings.items())
        # Each size counts by its time: equal to dense / sparse where nothing disturbed the rounds.
        gained = sum(timing.speedup * timing.sparse * calls[call] for call, timing in timings.items())
        return {
            "dense_us": dense_time * 1e6,
            "sparse_us": sparse_time * 1e6,
            "speedup": gained / sparse_time,
            "spread": max(timing.spread for timing in timings.values()),
            "rounds": min(timing.rounds for timing in timings.values()),
        }

    def _time_once(
        self, dense: DenseLayer, packed: PackedWeight, name: str, call: Call, fusion: Fusion | None
    ) -> Timing:
        weight = (packed.granularity, packed.dense_shape, round(packed.density, 2), packed.dtype, packed.device)
        then = None if fusion is None else str(fusion.module)  # with its arguments: in place is faster
        key = (*weight, _options(dense), dense.bias is not None, call, torch.get_num_threads(), then)
        if key not in self._known:
            self._known[key] = _timed(dense, packed, name, call, fusion)
        return self._known[key]


def _options(dense: DenseLayer) -> tuple[Any, ...]:
    """What a convolution's time depends on besides its weight and its input."""
    if isinstance(dense, nn.Linear):
        return ()
    return tuple(dense.stride), dense.padding, tuple(dense.dilation), dense.groups, dense.padding_mode


def _timed(dense: DenseLayer, packed: PackedWeight, name: str, call: Call, fusion: Fusion | None) -> Timing:
    sparse = sparse_twin(dense, packed, name, None if fusion is None else fusion.kind)
    then = () if fusion is None else (fusion.module,)
    if isinstance(dense, nn.Linear):
        return time_linear(dense, sparse, call.rows, *then)
    return time_conv2d(dense, sparse, call.images, call.layout, *then)
