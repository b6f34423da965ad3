"""Running a model to look at it, without leaving a trace in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; training flags and random states are put back, whatever happens.

    The flags are set one by one: a ``train`` method of the model's own may do more than set them.
    """
    flags = [(module, module.training) for module in model.modules()]
    python_state = random.getstate()
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for module, _ in flags:
                module.training = False
            yield
    finally:
        random.setstate(python_state)
        for module, flag in flags:
            module.training = flag


def count_tokens(model: nn.Module, layers: Mapping[str, nn.Linear], inputs: Any) -> dict[str, Counter[int]]:
    """Run the model once and see the rows of activations that each layer gets.

    Args:
        model: any module; call this within :func:`undisturbed`.
        layers: the layers to watch, by name.
        inputs: a tensor, a tuple or list of arguments, or a mapping of keyword arguments.

    Returns:
        For each layer how many of its calls had how many rows.
    """
    seen = {name: Counter[int]() for name in layers}

    def watch(name: str) -> Callable[..., None]:
        def count(layer: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            seen[name][x.numel() // layer.in_features] += 1

        return count

    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(watch(name), with_kwargs=True))
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with inputs in any of the forms that example inputs and calibration data come in."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)
