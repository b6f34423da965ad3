"""``conv_from_linear``: the fully connected layer of a classifier as the convolution of a dense prediction."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..layouts import permute_inputs
from .plain import beyond_plain, has_hooks
from .sparse_conv import SparseConv2d
from .sparse_linear import SparseLinear

_WHAT = "conv_from_linear"
_DIMENSIONS = "chw"


def conv_from_linear(
    linear: nn.Linear | SparseLinear, in_shape: Sequence[int], flatten: str = "nchw"
) -> nn.Conv2d | SparseConv2d:
    """The convolution that does at each window of an image what a fully connected layer does to one flattened window.

    The layer multiplies a feature map of ``in_shape`` that was flattened; its weight, laid out anew, is the kernel of a
    convolution without padding. On a map of just that size it gives the same outputs, as ``[batch, out, 1, 1]``; on a
    larger one, cell (i, j) of its output is the layer's output for the window whose first pixel is (i, j).

    A sparse layer is not pruned again: the same places are stored with the same values. Groups of one input stay what
    they are (``Block(16, 1)``, single weights, whole outputs). Wider blocks and n:m are groups of neighbours among the
    flattened features, and of channels of one pixel in a convolution. Those are the same where channels run fastest
    (``"nhwc"``, a 1x1 map, or ``"nwhc"`` if the channels of a pixel are whole groups). In the order ``"nchw"`` they are
    torn apart. Then the coarsest finer granularity that stores just the same places takes over: a narrower block, for
    ``NM(n, m, rows)`` the block ``rows`` x 1, for ``NM(n, m)`` single weights; ``conv.granularity`` says which. To get
    n:m in the convolution, convert the dense layer and prune then.

    Args:
        linear: ``nn.Linear`` or :class:`SparseLinear`; it is left as it was.
        in_shape: ``(channels, height, width)`` of the feature map, whatever order it was flattened in.
        flatten: that order, the letters c, h and w with the one that runs fastest last, with or without the batch n in
            front. ``"nchw"`` is what ``torch.flatten(x, 1)`` does to an image in PyTorch's order, ``"nhwc"`` is
            TensorFlow's order; ``"nwhc"`` is what ``x.permute(0, 3, 2, 1).flatten(1)`` does.

    Returns:
        ``nn.Conv2d`` of an ``nn.Linear``, :class:`SparseConv2d` of a :class:`SparseLinear`, with the kernel (height,
        width), stride 1 and copies of weight and bias. Dtype, device and ``requires_grad``, the fused activation and
        the training flag are those of ``linear``.

    Raises:
        TypeError: ``linear`` is neither; ``in_shape`` is not of integers; ``flatten`` is no string.
        ValueError: ``in_shape`` has not three sides >= 1, or their product is not ``linear.in_features``; an unknown
            order; a layer that is, does or has more than its class, which would be lost; a packed weight without
            values or with NaN or infinity.
    """
    _check_layer(linear)
    sides = _sides(in_shape, linear.in_features)
    order = _order(flatten)
    if isinstance(linear, SparseLinear):
        return _sparse(linear, sides, order)
    conv = skip_init(
        nn.Conv2d, sides["c"], linear.out_features, (sides["h"], sides["w"]), bias=linear.bias is not None,
        device=linear.weight.device, dtype=linear.weight.dtype,
    )  # fmt: skip
    # Contiguous, also where a side of 1 would let a view keep strides that convolutions take for channels-last.
    weight = _permuted(linear.weight.detach(), sides, order, "chw").clone(memory_format=torch.contiguous_format)
    conv.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        conv.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
    return conv.train(linear.training)


def _sparse(linear: SparseLinear, sides: dict[str, int], order: str) -> SparseConv2d:
    columns = torch.arange(linear.in_features)[None]
    # The columns of a convolution's matrix are in the order hwc, see layouts/conv.py.
    places = _permuted(columns, sides, order, "hwc").flatten()
    packed = permute_inputs(linear.packed, places, (sides["h"], sides["w"]), f"{_WHAT}: linear")
    name = "SparseConv2d" if linear.name == "SparseLinear" else linear.name
    conv = SparseConv2d(packed, linear.bias, activation=linear.activation, name=name)
    conv._dense_requires_grad = linear._dense_requires_grad
    conv.packed.values.requires_grad_(linear.packed.values.requires_grad)
    return conv.train(linear.training)


def _permuted(matrix: Tensor, sides: dict[str, int], order: str, wanted: str) -> Tensor:
    """``[rows, features]``, flattened in one order, as ``[rows, side, side, side]`` in another."""
    unflattened = matrix.unflatten(1, [sides[dimension] for dimension in order])
    return unflattened.permute(0, *(1 + order.index(dimension) for dimension in wanted))


def _check_layer(linear: nn.Module) -> None:
    """Refuse what a convolution with the same weight would not stand for."""
    if not isinstance(linear, (nn.Linear, SparseLinear)):
        raise TypeError(
            f"{_WHAT}: linear: expected an nn.Linear or a SparseLinear, got {type(linear).__name__}; of a network, "
            "convert its fully connected layers one by one"
        )
    beyond = _beyond_sparse(linear) if isinstance(linear, SparseLinear) else beyond_plain(linear)
    if beyond:
        kind = "SparseLinear" if isinstance(linear, SparseLinear) else "nn.Linear"
        raise ValueError(f"{_WHAT}: linear: expected a plain {kind}, got one that is more: {beyond}")


def _beyond_sparse(linear: SparseLinear) -> str | None:
    """What a sparse layer is, does or has beyond a ``SparseLinear``, in words for an error; None if nothing."""
    if type(linear).forward is not SparseLinear.forward or "forward" in vars(linear):
        return f"{type(linear).__name__} has a forward of its own"
    if "bias" not in linear._parameters:
        return "its bias is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it permanent"
    return "has hooks, which would be lost; remove them first" if has_hooks(linear) else None


def _sides(in_shape: Sequence[int], in_features: int) -> dict[str, int]:
    """Channels, height and width by their letters."""
    expected = f"{_WHAT}: in_shape: expected the (channels, height, width) of the feature map that was flattened"
    try:
        sides = [operator.index(side) for side in in_shape]
    except TypeError:
        raise TypeError(f"{expected}, three integers, got {in_shape!r}") from None
    if len(sides) != 3 or min(sides) < 1:
        hint = "; leave the batch out" if len(sides) == 4 else ""
        raise ValueError(f"{expected}, three integers >= 1, got {tuple(sides)}{hint}")
    if math.prod(sides) != in_features:
        product = " x ".join(map(str, sides))
        raise ValueError(
            f"{expected} to the {in_features} features that the layer takes, got {product} = {math.prod(sides)}; "
            "print the shape of what the network flattens"
        )
    return dict(zip(_DIMENSIONS, sides, strict=True))


def _order(flatten: str) -> str:
    """The letters c, h and w as the features were flattened."""
    expected = f"{_WHAT}: flatten: expected the order in which the features were flattened, such as 'nchw' or 'nhwc'"
    if not isinstance(flatten, str):
        raise TypeError(f"{expected}, a string, got {flatten!r}")
    order = flatten.removeprefix("n")
    if sorted(order) != sorted(_DIMENSIONS):
        raise ValueError(f"{expected}: c, h and w once each, the fastest last, got {flatten!r}")
    return order
