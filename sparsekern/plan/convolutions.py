"""What a convolution asks of a back end, and what a back end that has some answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layouts import Geometry, Granularity, is_product


@dataclass(frozen=True)
class ConvRequest:
    """What a convolution asks of a back end, everything but its input, stride, padding and dilation.

    Attributes:
        granularity: layout of the weight.
        shape: ``(out, in / groups, kh, kw)`` of the dense weight.
        groups: of inputs and outputs.
        dtype: of the weight.
        device: type of the device.
    """

    granularity: Granularity
    shape: tuple[int, int, int, int]
    groups: int
    dtype: torch.dtype
    device: str


@dataclass(frozen=True)
class ConvCall:
    """How a convolution is called, as far as it decides which kernel runs.

    Attributes:
        images: shape of the input, ``[batch, channels, height, width]``.
        layout: how it lies in memory.
        geometry: of the convolution.
    """

    images: tuple[int, int, int, int]
    layout: torch.memory_format
    geometry: Geometry

    @property
    def pixels(self) -> int:
        """Of all the outputs."""
        height, width = self.geometry.output_size(self.images[2:])
        return self.images[0] * height * width

    @property
    def is_product(self) -> bool:
        """Whether image and output are matrices as they lie in memory; one pixel is a row of one in either layout."""
        return is_product(self.geometry) and (self.layout == torch.channels_last or self.images[2:] == (1, 1))


class Convolutions:
    """The part of a :class:`Backend` that convolves; one that does not say otherwise refuses all of them."""

    name: ClassVar[str]

    def conv_refusal(self, request: ConvRequest) -> str | None:
        """As :meth:`Backend.refusal`, for a convolution; a back end that serves some also defines the methods below."""
        return "no convolutions"

    def conv_missing(self, request: ConvRequest) -> str | None:
        """As :meth:`Backend.missing`, for a convolution."""
        return None

    def conv_kernel_name(self, request: ConvRequest, call: ConvCall | None = None) -> str:
        """Name of the kernel that runs for a convolution; of the usual one where no call of it was observed."""
        raise NotImplementedError(f"{self.name} has no convolutions")

    def conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        """``activation(conv2d(x, W) + bias)``, with ``W`` packed in ``tensors``.

        Called with nothing that :meth:`conv_refusal` refuses, outside autocast; gradients are the caller's. Callers
        have verified the packed tensors, and checked everything with ``ops_conv.check_conv``, but for the size of the
        image where a graph is compiled and it may be a symbol.

        Args:
            x: ``[batch, channels, height, width]``, the weight's dtype and device; any strides, also no images.
            granularity: layout of the matrix ``[out, kh * kw * in / groups]``.
            geometry: shape of the dense weight, stride, padding, dilation and groups.
            tensors: the packed tensors in the order of ``granularity.part_names``.
            bias: ``[out]``, the weight's dtype and device, any stride; or None.
            activation: one of ``ops_conv.CONV_ACTIVATIONS``.

        Returns:
            ``[batch, out, height, width]`` of the weight's dtype, in the memory format ``ops_conv.layout_of(x)``:
            new memory.
        """
        raise NotImplementedError(f"{self.name} has no convolutions")

    def conv_grad_input(
        self,
        grad: Tensor,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
    ) -> Tensor:
        """The gradient of :meth:`conv2d`'s input; the reference, unless a back end has a faster one.

        Args:
            grad: that of the convolution before its activation; any strides.
            x: the input, of which only the shape and the memory format count.
            granularity: this and what follows as for :meth:`conv2d`.
            geometry: of the convolution.
            tensors: the packed tensors.

        Returns:
            Of the shape of ``x``, in the memory format ``ops_conv.layout_of(x)``: new memory.
        """
        return torch.ops.sparsekern.conv2d_grad_input.default(grad, x, tensors, granularity.spec, *geometry)

    def conv_grad_values(
        self,
        grad: Tensor,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
    ) -> Tensor:
        """The gradient of the packed values; arguments as for :meth:`conv_grad_input`.

        Returns:
            Of the shape of the values: new memory, zero in the padding.
        """
        return torch.ops.sparsekern.conv2d_grad_values.default(grad, x, tensors, granularity.spec, *geometry)
