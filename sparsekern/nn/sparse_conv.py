"""``SparseConv2d``: a drop-in for ``nn.Conv2d`` whose weight is packed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..layouts import Geometry, Granularity, PackedWeight
from ..ops_conv import check_epilogue, check_geometry
from ..plan import Backend, ConvCall, select_conv
from .functional_conv import BackendConv, pair, request_of, run_conv, zero_padding
from .sparse_layer import SparseLayer, pack_dense

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SparseConv2d(SparseLayer):
    """``y = activation(conv2d(x, W) + bias)`` with ``W`` packed.

    A module as :class:`SparseLinear` is: the packed tensors are buffers under their own names, ``bias`` is a
    Parameter, gradients reach the kept weights after ``layer.values.requires_grad_()``, and ``weight`` is the dense
    weight, unpacked at each access. Inputs, outputs and errors are those of ``nn.Conv2d``; the output is channels-last
    where the input is.

    The weight is pruned as the matrix ``[out, kh * kw * in / groups]``, see :func:`sparsekern.pack`: ``Block(16, 1)``
    keeps or drops 16 outputs of one input at one pixel of the kernel.

    Args:
        packed: the weight ``[out, in / groups, kh, kw]``.
        bias: ``[out]`` or None, the weight's dtype and device.
        stride: of the kernel; like the next two, one number or one for the height and one for the width.
        padding: on each side, or ``"valid"`` for none, or ``"same"`` for an output of the input's size.
        dilation: distance of the kernel's pixels.
        groups: into which inputs and outputs fall.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        activation: None, ``"relu"``, ``"gelu"``, ``"silu"``, ``"relu6"`` or ``"hardswish"``, fused.
        name: how errors call this layer.

    Raises:
        TypeError: ``packed`` is no packed weight, or a number is no integer.
        ValueError: what ``nn.Conv2d`` refuses; an unknown activation; a malformed ``packed`` or one of a linear layer.
        RuntimeError: a bias that does not fit; numbers with which ``nn.Conv2d`` would raise it when called.
    """

    _is_convolution: ClassVar[bool] = True

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        activation: str | None = None,
        name: str = "SparseConv2d",
    ) -> None:
        super().__init__(packed, bias, activation, name)
        self.out_channels, inputs, *kernel = packed.dense_shape
        self.groups = operator.index(groups)
        self.in_channels = inputs * self.groups
        self.kernel_size = (kernel[0], kernel[1])
        self.stride, self.dilation = pair(stride, "stride", name), pair(dilation, "dilation", name)
        self.padding = padding if isinstance(padding, str) else pair(padding, "padding", name)
        self.padding_mode = padding_mode
        self._check_options()
        zeros = zero_padding(padding, self.kernel_size, self.dilation, name)
        both, self._pad, self._pad_mode = zeros.both, zeros.more, "constant"
        if padding_mode != "zeros":
            (above, left), (_, right, _, below) = zeros.both, zeros.more or (0, 0, 0, 0)
            around = (left, left + right, above, above + below)
            both, self._pad, self._pad_mode = (0, 0), around if any(around) else (), padding_mode
        self._geometry = Geometry(packed.dense_shape, self.stride, both, self.dilation, self.groups)
        check_geometry(self._geometry, name)
        check_epilogue(packed.values, self.bias, self._geometry, self.activation, name)
        self._choose_backend()

    def _check_options(self) -> None:
        """Raise ``ValueError`` where the constructor of ``nn.Conv2d`` does."""
        for value, known, option in (
            (self.padding, ("same", "valid"), "padding"),
            (self.padding_mode, PADDING_MODES, "padding_mode"),
        ):
            if (isinstance(value, str) or option == "padding_mode") and value not in known:
                raise ValueError(f"{self.name}: expected {option} to be one of {', '.join(known)}, got {value!r}")
        if self.padding == "same" and self.stride != (1, 1):
            raise ValueError(f"{self.name}: expected a stride of 1 with padding 'same', got {list(self.stride)}")
        if self.groups < 1 or self.out_channels % self.groups:
            raise ValueError(
                f"{self.name}: expected groups > 0 that divide the {self.out_channels} outputs, got {self.groups}"
            )

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        granularity: Granularity,
        sparsity: float | None = None,
        mask: Tensor | None = None,
    ) -> SparseConv2d:
        """Prune and pack an ``nn.Conv2d``.

        Also one whose groups are too narrow for kernels, such as a depthwise one: it runs at dense speed or below.

        Args:
            conv: the dense layer; it is left as it was.
            granularity: groups that are kept or dropped together.
            sparsity: share of the groups to drop by magnitude, in [0, 1); granularities that imply one need none.
            mask: bool ``[out, in / groups, kh, kw]``, True = kept, instead of ``sparsity``. With neither, and none
                implied, the zeros of the weight are the mask.

        Raises:
            TypeError: not an ``nn.Conv2d``.
            ValueError: an ``nn.Conv2d`` that is, does or has more, which would be lost; both
                ``sparsity`` and ``mask``; what :func:`sparsekern.pack` refuses.
        """
        packed = pack_dense(conv, nn.Conv2d, granularity, sparsity, mask, "SparseConv2d.from_dense")
        layer = cls.of_conv(conv, packed, conv.bias)
        layer._dense_requires_grad = conv.weight.requires_grad
        return layer.train(conv.training)

    @classmethod
    def of_conv(
        cls,
        conv: nn.Conv2d | SparseConv2d,
        packed: PackedWeight,
        bias: Tensor | None,
        activation: str | None = None,
        name: str = "SparseConv2d",
    ) -> SparseConv2d:
        """A layer with the stride, padding, dilation and groups of another one."""
        numbers = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
        return cls(packed, bias, *numbers, activation, name)

    def forward(self, input: Tensor) -> Tensor:
        """``[batch, in, height, width]`` to ``[batch, out, height, width]``, or the same without a batch."""
        buffers: dict[str, Any] = self._buffers
        tensors = [buffers[name] for name in self.granularity.part_names]
        bias = self._parameters["bias"] if "bias" in self._parameters else self.bias
        pad, mode = self._pad, self._pad_mode
        return run_conv(self._product, input, tensors, bias, self.activation, pad, mode, self.name)

    def called_with(self, images: Sequence[int], layout: torch.memory_format) -> ConvCall:
        """What the plan needs to know of a call with images ``[batch, channels, height, width]`` of that layout."""
        batch, channels, height, width = images
        left, right, above, below = self._pad or (0, 0, 0, 0)
        return ConvCall((batch, channels, height + above + below, width + left + right), layout, self._geometry)

    def _dense_like(self, values: Tensor) -> nn.Conv2d:
        # Not nn.Conv2d alone: that would draw a weight and so change what the caller's generator gives next.
        return skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            padding_mode=self.padding_mode,
            bias=False,
            device=values.device,
            dtype=values.dtype,
        )

    def _select_backend(self, values: Tensor) -> Backend:
        backend = select_conv(request_of(self.packed, self.groups))
        self._product = BackendConv(backend, self.granularity, self._geometry)
        return backend

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_product"}

    def _size(self) -> str:
        numbers = {"kernel_size": self.kernel_size, "stride": self.stride}
        usual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        numbers |= {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        options = ", ".join(f"{name}={value}" for name, value in numbers.items())
        return f"{self.in_channels}, {self.out_channels}, {options}"
