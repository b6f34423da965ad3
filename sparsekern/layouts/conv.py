"""A convolution's numbers, and its weight seen as a matrix, and back: granularities know nothing but matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """The integers of a convolution, in the order in which its ops take them.

    Attributes:
        shape: ``(out, in / groups, kh, kw)`` of the dense weight.
        stride: steps of the kernel; this and the next two: of the height and of the width.
        padding: zeros on each side.
        dilation: distance of the kernel's pixels.
        groups: of inputs and outputs; an output sees the inputs of its own group.
    """

    shape: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the output for those of the input; 0 or less where the kernel does not fit."""
        return self._along(0, size[0]), self._along(1, size[1])

    def _along(self, side: int, size: int) -> int:
        reach = self.dilation[side] * (self.shape[2 + side] - 1) + 1
        return (size + 2 * self.padding[side] - reach) // self.stride[side] + 1


def is_product(geometry: Geometry) -> bool:
    """Whether every pixel makes one of the output, so that image and output are matrices as they lie in memory."""
    shape, stride, padding, _, groups = geometry
    return (*shape[2:], *stride, *padding, groups) == (1, 1, 1, 1, 0, 0, 1)


def matrix_shape(shape: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Shape of the matrix of a weight ``(out, in)`` or ``(out, in, kh, kw)``, and the latter's kernel."""
    kernel = None if len(shape) == 2 else (shape[2], shape[3])
    return (shape[0], math.prod(shape[1:])), kernel


def matrix_of(weight: Tensor) -> Tensor:
    """``[out, in, kh, kw]`` as ``[out, kh * kw * in]``, in channels-last order; a matrix as it is.

    So the inputs of one pixel lie side by side, as they do in a channels-last image.
    """
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def weight_of(matrix: Tensor, kernel: tuple[int, int] | None) -> Tensor:
    """The weight ``[out, in, kh, kw]`` of which this is the matrix, contiguous; the matrix itself without a kernel.

    Args:
        matrix: ``[out, kh * kw * in]``.
        kernel: ``(kh, kw)``, or None for the weight of a linear layer.
    """
    if kernel is None:
        return matrix
    # Cloned: of a 1x1 kernel the view counts as contiguous but keeps strides by which convolutions take it for
    # channels-last, and then they return their output so.
    return matrix.unflatten(1, (*kernel, -1)).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
