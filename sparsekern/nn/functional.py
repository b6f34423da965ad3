"""``sk.linear``: the product with a packed weight, on whichever back end serves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layouts import Granularity, PackedWeight
from ..ops import check_linear, differentiable, needs_autograd
from ..plan import Backend, Request, select


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """``activation(x @ W.T + bias)`` with a packed ``W``.

    Args:
        x: ``[..., in]``, any leading dimensions, any strides, the weight's dtype and device. Under
            autocast it is cast to the weight's dtype, and the output has that dtype.
        packed: weight ``[out, in]`` from :func:`sparsekern.pack`.
        bias: ``[out]``, the weight's dtype.
        activation: None, ``"relu"``, ``"gelu"`` (exact) or ``"silu"``, fused into the kernel.

    Returns:
        ``[..., out]``, contiguous. Equal to the dense product of ``packed.to_dense()`` within the
        rounding of the dtype.

    Raises:
        TypeError: a dtype or device differs from the weight's.
        ValueError: a shape does not fit, or the activation is unknown.
    """
    activation = activation or "none"
    weight = packed.values
    x = checked_input(x, weight, bias, packed.shape, activation, "linear")
    backend = select(Request(packed.granularity, packed.shape, weight.dtype, weight.device.type))
    return run_linear(backend, x, packed.granularity, packed.shape, packed.tensors, bias, activation)


def checked_input(
    x: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[int, int], activation: str, what: str
) -> Tensor:
    """``x`` as a back end may take it, or an error that names ``what``; see :func:`linear`."""
    if x.device != weight.device:
        raise TypeError(
            f"{what}: expected an input on {weight.device} like the weight, got {x.device}; move one of them"
        )
    # A kernel has one dtype. Autocast promises that dtypes need not be minded, so the input follows.
    if x.dtype != weight.dtype and x.is_floating_point() and _in_autocast(x):
        x = x.to(weight.dtype)
    check_linear(x, weight.dtype, bias, shape[0], shape[1], activation, what)
    return x


def run_linear(
    backend: Backend,
    x: Tensor,
    granularity: Granularity,
    shape: tuple[int, int],
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    activation: str,
) -> Tensor:
    """Call ``backend.linear`` in the weight's own dtype, at the least cost that the grad mode allows."""
    if torch._C._is_any_autocast_enabled() and _in_autocast(x):
        with torch.autocast(x.device.type, enabled=False):
            return backend.linear(x, granularity, shape, tensors, bias, activation)
    # Compilers and function transforms look for the op; inference mode has no autograd to go past.
    if (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._are_functorch_transforms_active()
    ):
        return backend.linear(x, granularity, shape, tensors, bias, activation)
    # The op's own autograd is Python behind the dispatcher, which takes as long as a small product.
    if not needs_autograd(x, bias, tensors[0]):
        with torch._C._AutoDispatchBelowAutograd():
            return backend.linear(x, granularity, shape, tensors, bias, activation)

    def below(x: Tensor, bias: Tensor | None, tensors: Sequence[Tensor]) -> Tensor:
        return backend.linear(x, granularity, shape, tensors, bias, activation)

    return differentiable(below, (granularity.spec, *shape, activation), x, bias, tensors)


def _in_autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)
