"""What the back ends of GPUs have in common for convolutions: those of single pixels are products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import Geometry, Granularity, is_product, matrix_shape
from ..ops import ACTIVATIONS, APPLY
from ..ops_conv import layout_of
from ..plan.convolutions import ConvCall, ConvRequest
from ..plan.registry import Backend, Request

MANY_PIXELS = 4096
"""A convolution has as many as kernels of many tokens are for, wherever nothing else is said."""


class GpuConvolutions(Backend):
    """Convolutions of single pixels by the kernels of products, and others where there is a kernel for them.

    A channels-last image is a matrix of pixels by channels as it lies in memory, and so is the output. Other images are
    copied to that order and back; so are the pixels that a stride takes, unless the other kernel takes them.
    """

    def conv_refusal(self, request: ConvRequest) -> str | None:
        if refused := self.refusal(product_of(request)):
            return refused
        return None if is_pointwise(request) else self.window_refusal(*_window_of(request))

    def conv_missing(self, request: ConvRequest) -> str | None:
        served = is_pointwise(request) or self.window_refusal(*_window_of(request)) is None
        return self.missing(product_of(request)) if served else None

    def conv_kernel_name(self, request: ConvRequest, call: ConvCall | None = None) -> str:
        if not is_pointwise(request):
            return self.window_kernel_name(request)
        if call is None:
            return self.kernel_name(product_of(request), MANY_PIXELS)
        if not is_product(call.geometry) and self.window_refusal(*_window_of(request)) is None:
            return self.window_kernel_name(request)
        return self.kernel_name(product_of(request), call.pixels)

    @abstractmethod
    def window_refusal(self, granularity: Granularity, shape: Sequence[int], groups: int) -> str | None:
        """Why a weight that :meth:`refusal` takes as a matrix is not convolved with windows of pixels, if it is not."""

    @abstractmethod
    def window_kernel_name(self, request: ConvRequest) -> str:
        """Name of the kernel of :meth:`window_conv2d`."""

    @abstractmethod
    def window_conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        """:meth:`conv2d` of what :meth:`window_refusal` does not refuse."""

    def conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        shape, (down, right), (above, left), _, groups = geometry
        if not is_product(geometry) and self.window_refusal(granularity, shape, groups) is None:
            return self.window_conv2d(x, granularity, geometry, tensors, bias, activation)
        fused = activation if activation in ACTIVATIONS else "none"
        seen = F.pad(x, (left, left, above, above)) if above or left else x
        pixels = _rows_of(seen[:, :, ::down, ::right])
        y = self.linear(pixels, granularity, matrix_shape(shape)[0], tensors, bias, fused)
        return _image_of(y if fused == activation else APPLY[activation](y), layout_of(x))

    def conv_grad_input(
        self,
        grad: Tensor,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
    ) -> Tensor:
        if not is_product(geometry):
            return super().conv_grad_input(grad, x, granularity, geometry, tensors)
        return _image_of(
            self.grad_input(_rows_of(grad), granularity, matrix_shape(geometry.shape)[0], tensors), layout_of(x)
        )

    def conv_grad_values(
        self,
        grad: Tensor,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
    ) -> Tensor:
        if not is_product(geometry):
            return super().conv_grad_values(grad, x, granularity, geometry, tensors)
        shape, _ = matrix_shape(geometry.shape)
        return self.grad_values(_rows_of(grad), _rows_of(x), granularity, shape, tensors)


def product_of(request: ConvRequest) -> Request:
    """What a product with the matrix of a convolution asks of a back end."""
    return Request(request.granularity, matrix_shape(request.shape)[0], request.dtype, request.device)


def described(shape: Sequence[int], groups: int) -> str:
    """Convolutions of a kind, for refusals."""
    return f"convolutions of {shape[2]}x{shape[3]} pixels{f' in {groups} groups' if groups > 1 else ''}"


def is_pointwise(request: ConvRequest) -> bool:
    """Whether every output is of one pixel, and of all its channels."""
    return request.shape[2:] == (1, 1) and request.groups == 1


def _window_of(request: ConvRequest) -> tuple[Granularity, tuple[int, int, int, int], int]:
    return request.granularity, request.shape, request.groups


def _rows_of(images: Tensor) -> Tensor:
    """``[batch, height, width, channels]`` of images: a view."""
    return images.permute(0, 2, 3, 1)


def _image_of(rows: Tensor, layout: torch.memory_format) -> Tensor:
    """``[batch, channels, height, width]`` of contiguous rows: a view where the layout is channels-last."""
    images = rows.permute(0, 3, 1, 2)
    # Not contiguous(), for which an image of one pixel has either layout.
    return images if layout == torch.channels_last else images.clone(memory_format=layout)
