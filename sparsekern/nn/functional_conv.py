"""``sk.conv2d``: the convolution with a packed weight, on whichever back end serves it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import Geometry, Granularity, PackedWeight
from ..ops import Product, differentiable
from ..ops_conv import check_epilogue, check_geometry, check_image, check_size, layout_of
from ..plan import Backend, ConvRequest, select_conv
from .functional import check_packed, in_autocast


def conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """``activation(conv2d(x, W) + bias)`` with a packed ``W``, as ``torch.nn.functional.conv2d`` has it.

    Args:
        x: ``[batch, in, height, width]`` or ``[in, height, width]``, any strides, the weight's dtype and device. Under
            autocast it is cast to the weight's dtype, and the output has that dtype.
        packed: weight ``[out, in / groups, kh, kw]`` from :func:`sparsekern.pack`.
        bias: ``[out]``, the weight's dtype and device.
        stride: of the kernel; like the next two, one number or one for the height and one for the width.
        padding: zeros on each side, or ``"valid"`` for none, or ``"same"`` for an output of the input's size.
        dilation: distance of the kernel's pixels.
        groups: into which inputs and outputs fall.
        activation: None, ``"relu"``, ``"gelu"`` (exact), ``"silu"``, ``"relu6"`` or ``"hardswish"``, fused.

    Returns:
        ``[batch, out, height, width]`` or ``[out, height, width]``, channels-last where ``x`` is, else contiguous.
        Equal to the dense convolution with ``packed.to_dense()`` within the rounding of the dtype.

    Raises:
        TypeError: ``packed`` is no packed weight, or a number is no integer.
        RuntimeError: what ``torch.nn.functional.conv2d`` refuses: shapes that do not fit, images smaller than the
            kernel, another dtype or device than the weight's, negative numbers, an unknown padding.
        ValueError: an unknown activation; the packed weight of a linear layer, or one that is malformed.
    """
    what, activation = "conv2d", activation or "none"
    check_packed(packed, what, convolution=True)
    steps, distances = pair(stride, "stride", what), pair(dilation, "dilation", what)
    kernel = packed.dense_shape[2:]
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(f"{what}: expected padding to be numbers, 'same' or 'valid', got {padding!r}")
        if padding == "same" and steps != (1, 1):
            raise RuntimeError(f"{what}: expected a stride of 1 with padding 'same', got {list(steps)}")
    zeros = zero_padding(padding, kernel, distances, what)
    geometry = Geometry(packed.dense_shape, steps, zeros.both, distances, operator.index(groups))
    check_geometry(geometry, what)
    check_epilogue(packed.values, bias, geometry, activation, what)
    request = request_of(packed, geometry.groups)
    product = BackendConv(select_conv(request), packed.granularity, geometry)
    return run_conv(product, x, packed.tensors, bias, activation, zeros.more, what=what)


def request_of(packed: PackedWeight, groups: int) -> ConvRequest:
    """What a convolution with this weight asks of a back end."""
    outputs, inputs, height, width = packed.dense_shape
    return ConvRequest(packed.granularity, (outputs, inputs, height, width), groups, packed.dtype, packed.device.type)


def pair(numbers: int | Sequence[int], name: str, what: str) -> tuple[int, int]:
    """One number, or one for the height and one for the width, as two.

    Raises:
        RuntimeError: another number of numbers.
        TypeError: no integers.
    """
    found = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
    if len(found) not in (1, 2):
        raise RuntimeError(f"{what}: expected one or two integers as {name}, got {list(found)}")
    try:
        return operator.index(found[0]), operator.index(found[-1])
    except TypeError:
        raise TypeError(f"{what}: expected integers as {name}, got {numbers!r}") from None


class ZeroPadding(NamedTuple):
    """Zeros around an image.

    Attributes:
        both: above and below, left and right: what back ends take.
        more: to the left, right, above and below: what is added to the image before; none if empty.
    """

    both: tuple[int, int]
    more: tuple[int, ...]


def zero_padding(
    padding: int | Sequence[int] | str, kernel: Sequence[int], dilation: Sequence[int], what: str
) -> ZeroPadding:
    """The numbers that a padding stands for, which is ``"same"``, ``"valid"`` or numbers.

    An odd number of zeros for ``"same"`` puts one more to the right and below.
    """
    if padding == "valid":
        return ZeroPadding((0, 0), ())
    if padding == "same":
        height, width = (dilation[i] * (kernel[i] - 1) for i in range(2))
        more = (0, width % 2, 0, height % 2)
        return ZeroPadding((height // 2, width // 2), more if any(more) else ())
    assert not isinstance(padding, str)
    return ZeroPadding(pair(padding, "padding", what), ())


class BackendConv(Product):
    """A back end's convolution with weights of one layout and geometry."""

    # What was convolved last, and so need not be checked again: at few pixels that costs as much as a small product.
    seen: tuple[torch.Size, torch.dtype, torch.device] | None = None

    def __init__(self, backend: Backend, granularity: Granularity, geometry: Geometry) -> None:
        self.backend, self.granularity, self.geometry = backend, granularity, geometry

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return self.backend.conv2d(x, self.granularity, self.geometry, weight, bias, activation)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return self.backend.conv_grad_input(grad, x, self.granularity, self.geometry, weight)

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return self.backend.conv_grad_values(grad, x, self.granularity, self.geometry, weight)

    def grad_bias(self, grad: Tensor) -> Tensor:
        return grad.sum((0, 2, 3))


def run_conv(
    product: BackendConv,
    x: Tensor,
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    activation: str,
    pad: Sequence[int],
    mode: str = "constant",
    what: str = "conv2d",
) -> Tensor:
    """Check an input and convolve it, in the weight's own dtype; see :func:`conv2d`.

    Args:
        product: the back end and the geometry, checked.
        x: the input, batched or not, of which nothing is known yet.
        tensors: the packed tensors.
        bias: ``[out]`` or None.
        activation: one of ``CONV_ACTIVATIONS``.
        pad: what is put around the image before, as ``torch.nn.functional.pad`` takes it; empty for nothing.
        mode: of that padding.
        what: what errors call the layer or function.
    """
    values = tensors[0]
    # As in a linear layer: a kernel has one dtype, and autocast promises that dtypes need not be minded.
    autocast = torch._C._is_any_autocast_enabled() and in_autocast(x)
    if autocast and x.is_floating_point():
        x = x.to(values.dtype)
    batched = x.dim() != 3
    images = x if batched else x.unsqueeze(0)
    compiling = torch.compiler.is_compiling()
    seen = (images.shape, images.dtype, images.device)
    known = not compiling and seen == product.seen
    if not known:
        check_image(images, values, product.geometry, what)
    if pad:
        images = F.pad(images, pad, mode).contiguous(memory_format=layout_of(images))  # circular forgets it
    if not (known or compiling):  # where sizes may be symbols; the op checks them when it runs
        check_size(images, product.geometry, what)
        product.seen = seen
    if autocast:
        with torch.autocast(x.device.type, enabled=False):
            y = product.forward(images, tensors, bias, activation)
    elif compiling or torch.is_inference_mode_enabled() or torch._C._are_functorch_transforms_active():
        y = product.forward(images, tensors, bias, activation)
    else:
        y = differentiable(product, activation, images, bias, tensors)
    return y if batched else y.squeeze(0)
