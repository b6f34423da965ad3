"""Running a model to look at it, without leaving a trace in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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


@contextmanager
def watched(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, input)`` before each call of a layer; the hooks are gone afterwards, whatever happens."""

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(name, args[0] if args else kwargs["input"])

        return look

    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(hook(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with inputs in any of the forms that example inputs and calibration data come in."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)
