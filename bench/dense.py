"""Dense PyTorch in the ways that can be the fastest, which sparse layers are compared with.

    eager     ``layer(x)``
    compiled  torch.compile, the weight a constant that is laid out for the CPU beforehand ("frozen")
    tuned     the same, the product chosen by measurement among those of the compiler
    onednn    the product by oneDNN that compiled bfloat16 layers call, of float32 too

PyTorch multiplies float32 by MKL where it has it, compiled or not. On AMD processors MKL does without AVX-512, and
oneDNN, which is part of PyTorch all the same, is up to 2.4 times as fast; so it stands among them, though no
documented function reaches it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def frozen(module: nn.Module, *args: object, tune: bool = False, **kwargs: object) -> Callable[..., object]:
    """``torch.compile`` with parameters as constants, compiled for these arguments of the module.

    Args:
        tune: choose products by measurement.

    Raises:
        RuntimeError: gradients are enabled, with which nothing is frozen.
    """
    import torch._inductor.config as inductor

    if torch.is_grad_enabled():
        raise RuntimeError("expected torch.inference_mode(), found gradients enabled: parameters would not be frozen")
    # That parameters are constants is decided where the module is traced, by the global setting: the option alone
    # does nothing but keep this apart from code that was compiled without it.
    with inductor.patch(freezing=True):
        run = torch.compile(module, dynamic=False, options={"freezing": True, "max_autotune": tune})
        run(*args, **kwargs)
    return run


def linear_variants(linear: nn.Linear, x: Tensor, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Calls of the layer by name; without ``compiled`` only the eager one.

    Whoever compiles many layers calls ``torch._dynamo.reset`` between them, before this: after a reset the calls that
    were made before would compile anew, and freeze nothing.
    """
    variants: dict[str, Callable[[], Any]] = {"eager": partial(linear, x)}
    if not compiled:
        return variants
    variants["compiled"] = partial(frozen(linear, x), x)
    variants["tuned"] = partial(frozen(linear, x, tune=True), x)
    if torch.backends.mkldnn.is_available() and (
        x.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), x.shape[0])
        variants["onednn"] = partial(onednn, x, packed, linear.bias)
    return variants


def conv_variants(conv: nn.Conv2d, x: Tensor, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Calls of a convolution by name, for images in either memory format.

    What oneDNN convolves with a weight that was laid out for it beforehand is what a frozen compiled layer calls.
    """
    variants: dict[str, Callable[[], Any]] = {}
    for suffix, form in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
        image, own = x.contiguous(memory_format=form), copy.deepcopy(conv).to(memory_format=form)
        variants[f"eager{suffix}"] = partial(own, image)
        if torch.backends.mkldnn.is_available():
            numbers = (conv.padding, conv.stride, conv.dilation, conv.groups)
            packed = torch.ops.mkldnn._reorder_convolution_weight(own.weight.detach(), *numbers, image.shape)
            variants[f"onednn{suffix}"] = partial(onednn_conv, image, packed, conv.bias, *numbers)
        if compiled:
            variants[f"compiled{suffix}"] = partial(frozen(own, image), image)
    return variants


def onednn_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *numbers: Any) -> Tensor:
    """``F.conv2d`` by oneDNN, of a weight that was laid out for it; padding, stride, dilation and groups follow."""
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *numbers, "none", [], "")
    return y


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` by oneDNN, of a weight that was laid out for it or of a plain one."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class OneDnnFunction(torch.autograd.Function):
    """``F.linear`` and both its gradients by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = onednn(grad, weight.t()) if ctx.needs_input_grad[0] else None
        # What comes first is copied: the narrower of both.
        narrow_x = x.shape[1] < grad.shape[1]
        grad_weight = onednn(x.t(), grad.t()).t() if narrow_x else onednn(grad.t(), x.t())
        return grad_x, grad_weight, grad.sum(0)


class OneDnnLinear(nn.Linear):
    """A linear layer that trains by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        return OneDnnFunction.apply(x, self.weight, self.bias)
