"""``sk.linear``: the product with a packed weight, on whichever back end serves it."""

from __future__ import annotations

from torch import Tensor

from ..layouts import PackedWeight
from ..ops import check_linear
from ..plan import Request, select


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """``activation(x @ W.T + bias)`` with a packed ``W``.

    Args:
        x: ``[..., in]``, any leading dimensions, any strides, the weight's dtype and device.
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
    out_features, in_features = packed.shape
    check_linear(x, packed.dtype, bias, out_features, in_features, activation, "linear")
    if x.device != packed.device:
        raise TypeError(f"linear: expected an input on {packed.device} like the weight, got {x.device}")
    backend = select(Request(packed.granularity, packed.shape, packed.dtype, packed.device.type))
    return backend.linear(x, packed.granularity, packed.shape, packed.tensors, bias, activation)
