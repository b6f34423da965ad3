"""The back end that is always right: unpack, then dense PyTorch. It serves what no kernel does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..layouts import WEIGHT_DTYPES, Geometry, Granularity, dtype_name, registered
from ..plan.convolutions import ConvCall, ConvRequest
from ..plan.registry import Backend, KernelRecord, Request


class ReferenceBackend(Backend):
    """Serves every granularity, dtype and device, at dense speed or below."""

    name: ClassVar[str] = "reference"
    is_last_resort: ClassVar[bool] = True

    def kernels(self) -> list[KernelRecord]:
        dtypes = tuple(dtype_name(dtype) for dtype in WEIGHT_DTYPES)
        return [
            KernelRecord(
                name=name, backend=self.name, op=op, granularity=kind, dtypes=dtypes, isa="torch", runs_here=True
            )
            for kind in registered()
            for name, op in ((f"reference_{kind}", "linear"), (f"reference_conv_{kind}", "conv2d"))
        ]

    def refusal(self, request: Request) -> str | None:
        return None

    def kernel_name(self, request: Request, tokens: int) -> str:
        return f"reference_{request.granularity.kind}"

    def linear(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        return torch.ops.sparsekern.linear(x, tensors, bias, granularity.spec, shape[0], shape[1], activation)

    def conv_refusal(self, request: ConvRequest) -> str | None:
        return None

    def conv_kernel_name(self, request: ConvRequest, call: ConvCall | None = None) -> str:
        return f"reference_conv_{request.granularity.kind}"

    def conv2d(
        self,
        x: Tensor,
        granularity: Granularity,
        geometry: Geometry,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        return torch.ops.sparsekern.conv2d.default(x, tensors, bias, granularity.spec, *geometry, activation)
