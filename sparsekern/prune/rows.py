"""What a layer multiplies its weight with: the rows of a matrix, for a convolution those of its unfolded images."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

CalibratedLayer = nn.Linear | nn.Conv2d
"""The layers that can be pruned with calibration data; of convolutions those without groups."""


def is_calibrated(layer: nn.Module) -> bool:
    """Whether a layer can be pruned with calibration data: with groups, there is no one input of all outputs."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def width(layer: CalibratedLayer) -> int:
    """Columns of the matrix that the layer's weight is."""
    return layer.weight[0].numel()


def reading(layer: CalibratedLayer) -> Hashable:
    """Equal for layers that make the same rows of the same input."""
    if isinstance(layer, nn.Linear):
        return None
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode


def rows(layer: CalibratedLayer, x: Tensor) -> Iterator[Tensor]:
    """The rows of an input, ``[rows, width]`` float32, in parts: of a linear layer in one, else image by image.

    Args:
        layer: that gets the input.
        x: the input, batched or not.
    """
    wide = x.detach().float()
    if isinstance(layer, nn.Linear):
        yield wide.reshape(-1, wide.shape[-1])
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    for image in wide if x.dim() == 4 else wide.unsqueeze(0):
        padded = F.pad(image[None], layer._reversed_padding_repeated_twice, mode)
        columns = F.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride)
        # From [1, channels * pixels of the kernel, places] to the order of the weight's matrix.
        yield columns.view(len(image), -1, columns.shape[2]).permute(2, 1, 0).flatten(1)
