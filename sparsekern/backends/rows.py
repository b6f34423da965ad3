"""The back end of whole outputs: dense PyTorch with the kept rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..layouts import WEIGHT_DTYPES, Channel, Geometry, Granularity, dtype_name
from ..plan.convolutions import ConvCall, ConvRequest
from ..plan.registry import Backend, KernelRecord, Request


class RowsBackend(Backend):
    """Serves :class:`Channel` in every dtype on every device, gradients too.

    No output is multiplied that was dropped; what is lost is the time that it takes to put the others in their places.
    """

    name: ClassVar[str] = "rows"
    kinds: ClassVar[tuple[str, ...]] = (Channel.kind,)

    def kernels(self) -> list[KernelRecord]:
        dtypes = tuple(dtype_name(dtype) for dtype in WEIGHT_DTYPES)
        return [
            KernelRecord(
                name=name,
                backend=self.name,
                op=op,
                granularity=Channel.kind,
                dtypes=dtypes,
                isa="torch",
                runs_here=True,
            )
            for name, op in (("kept_rows", "channel_linear"), ("kept_rows_conv", "channel_conv2d"))
        ]

    def refusal(self, request: Request) -> str | None:
        return None

    def kernel_name(self, request: Request, tokens: int) -> str:
        return "kept_rows"

    def linear(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        return torch.ops.sparsekern.channel_linear.default(x, *tensors, bias, shape[0], activation)

    def grad_input(
        self, grad: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        return torch.ops.sparsekern.channel_linear_grad_input.default(grad, *tensors)

    def grad_values(
        self, grad: Tensor, x: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        return torch.ops.sparsekern.channel_linear_grad_values.default(grad, x, *tensors)

    def conv_refusal(self, request: ConvRequest) -> str | None:
        # Each group keeps a number of its own, and a dense convolution has groups of equal size.
        return f"convolutions in {request.groups} groups" if request.groups > 1 else None

    def conv_kernel_name(self, request: ConvRequest, call: ConvCall | None = None) -> str:
        return "kept_rows_conv"

    def conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        return torch.ops.sparsekern.channel_conv2d.default(x, *tensors, bias, *geometry, activation)

    def conv_grad_input(
        self, grad: Tensor, x: Tensor, granularity: Granularity, geometry: Geometry, tensors: Sequence[Tensor]
    ) -> Tensor:
        return torch.ops.sparsekern.channel_conv2d_grad_input.default(grad, x, *tensors, *geometry)

    def conv_grad_values(
        self, grad: Tensor, x: Tensor, granularity: Granularity, geometry: Geometry, tensors: Sequence[Tensor]
    ) -> Tensor:
        return torch.ops.sparsekern.channel_conv2d_grad_values.default(grad, x, *tensors, *geometry)
