"""The torch ops of the Triton kernels: schema, fake, autograd, FLOP count.

Importing this imports Triton and makes the ops known to torch, so the back end does it when a product on a GPU first
asks for it. As ``triton_op`` they are opaque to ``torch.export`` but open to ``torch.compile``, which compiles the
kernels into its own graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

from ...layouts import NM
from ...ops import LIBRARY, Product, block_spec, check_devices, check_linear, count_flops, differentiable
from .kernels.block import block_linear_kernel
from .kernels.block_tma import block_linear_tma_kernel
from .kernels.nm import nm_linear_kernel
from .tiles import MIN_CAPABILITY, block_constants, block_tile, nm_constants, nm_tile, tma_tile

INTERPRET = not isinstance(block_linear_kernel, triton.JITFunction)
"""Whether the kernels were made for Triton's interpreter (``TRITON_INTERPRET=1``), which takes CPU tensors."""


@triton_op("sparsekern::triton_block_linear", mutates_args=())
def triton_block_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    activation: str,
) -> Tensor:
    """``activation(x @ W.T + bias)``, ``[..., out]``, with the packed tensors of a ``Block`` for ``W``."""
    _check(x, values, bias, (out_features, in_features), activation, "sparsekern::triton_block_linear")
    _, cols, rows = values.shape
    y = x.new_empty(math.prod(x.shape[:-1]), out_features)
    capability, itemsize = _capability(x.device), x.element_size()
    tile = tma_tile(capability, rows, cols, (y.shape[0], out_features), itemsize, activation)
    if y.numel():
        if tile is not None and columns.dtype == torch.uint8 and _begins_at_16_bytes(values):
            # Each time, for it is a setting of the thread and its context. What torch.compile made has one of its own.
            triton.set_allocator(_descriptor_memory)
            x_rows = _described_rows(x)
            kernel, sizes = block_linear_tma_kernel, [x_rows.shape[1], x_rows.stride(0)]
        else:
            tile = block_tile(capability, rows, y.shape[0], itemsize)
            x_rows = _rows(x, cols)
            kernel, sizes = block_linear_kernel, [x_rows.stride(0)]
        with torch.cuda.device_of(x):
            wrap_triton(kernel)[(triton.cdiv(out_features, tile.rows) * triton.cdiv(y.shape[0], tile.tokens),)](
                x_rows,
                values,
                columns,
                offsets,
                values if bias is None else bias.contiguous(),
                y,
                y.shape[0],
                out_features,
                *sizes,
                **block_constants(tile, cols),
                HAS_BIAS=bias is not None,
                ACTIVATION=activation,
                INTERPRET=INTERPRET,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
    return y.view(*x.shape[:-1], out_features)


def _descriptor_memory(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors of a launch, on the current device and stream: a CUDA graph takes it from its pool."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


@triton_op("sparsekern::triton_nm_linear", mutates_args=())
def triton_nm_linear(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    out_features: int,
    in_features: int,
    activation: str,
) -> Tensor:
    """``activation(x @ W.T + bias)``, ``[..., out]``, with the packed tensors of ``NM(n, m)`` for ``W``."""
    _check(x, values, bias, (out_features, in_features), activation, "sparsekern::triton_nm_linear")
    y = x.new_empty(math.prod(x.shape[:-1]), out_features)
    tile = nm_tile(_capability(x.device), m, y.shape[0], x.element_size())
    x_rows = _rows(x, tile.step)
    grid = (triton.cdiv(out_features, tile.rows) * triton.cdiv(y.shape[0], tile.tokens),)
    if y.numel():
        with torch.cuda.device_of(x):
            wrap_triton(nm_linear_kernel)[grid](
                x_rows,
                values,
                positions,
                values if bias is None else bias.contiguous(),
                y,
                y.shape[0],
                out_features,
                values.shape[1],
                x_rows.stride(0),
                **nm_constants(tile, n, m),
                HAS_BIAS=bias is not None,
                ACTIVATION=activation,
                INTERPRET=INTERPRET,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
    return y.view(*x.shape[:-1], out_features)


def _check(x: Tensor, values: Tensor, bias: Tensor | None, shape: tuple[int, int], activation: str, what: str) -> None:
    check_linear(x, values, bias, shape, activation, what)
    if not (x.is_cuda or INTERPRET):
        raise ValueError(f"{what}: expected tensors on a CUDA device, got them on {x.device}")


def _rows(x: Tensor, multiple: int) -> Tensor:
    """``x`` as ``[tokens, inputs]`` in the form in which kernels load 16 bytes at once.

    The inputs lie side by side, zeros fill them up to a multiple, and every token begins at a multiple of 16 numbers,
    which is what Triton asks of a stride. Most layers' activations are so already; others are copied.
    """
    rows = x.reshape(-1, x.shape[-1])
    missing = -rows.shape[1] % multiple
    if missing:
        return F.pad(rows, (0, missing))
    return rows if rows.stride(1) == 1 and rows.stride(0) % 16 == 0 else rows.contiguous()


def _described_rows(x: Tensor) -> Tensor:
    """:func:`_rows` as a descriptor takes them."""
    rows = _rows(x, 16)
    if _begins_at_16_bytes(rows) and rows.stride(0) >= rows.shape[1]:
        return rows
    return rows.clone(memory_format=torch.contiguous_format)


def _begins_at_16_bytes(x: Tensor) -> bool:
    """Whether TMA takes a tensor's address, which for a traced tensor is known within its memory only."""
    return x.storage_offset() * x.element_size() % 16 == 0


@cache
def _capability(device: torch.device) -> int:
    """Compute capability of a device, times ten; the interpreter is taken for the least of them."""
    if device.type != "cuda":
        return MIN_CAPABILITY
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


# ---- fakes ---------------------------------------------------------------------------------------


@triton_block_linear.register_fake
def _(
    x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, out_features: int, *rest: Any
) -> Tensor:
    check_devices(x, [values, columns, offsets], bias, "sparsekern::triton_block_linear")
    return x.new_empty(*x.shape[:-1], out_features)


@triton_nm_linear.register_fake
def _(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, out_features: int, *rest: Any
) -> Tensor:
    check_devices(x, [values, positions], bias, "sparsekern::triton_nm_linear")
    return x.new_empty(*x.shape[:-1], out_features)


# ---- autograd ------------------------------------------------------------------------------------


class _TritonLinear(Product):
    """An op of this file as an ``ops.Product``, with the reference's gradients: dense products, on tensor cores.

    Args:
        op: the op.
        numbers: its integers, which follow the tensors; the last two are the shape of the weight.
        granularity: the layout of its tensors, as text.
    """

    def __init__(self, op: Any, numbers: tuple[int, ...], granularity: str) -> None:
        self.op, self.numbers, self.granularity = op, numbers, granularity

    def forward(self, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
        return self.op(x, *weight, bias, *self.numbers, activation)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.linear_grad_input.default(grad, weight, self.granularity, *self.numbers[-2:])

    def grad_values(self, grad: Tensor, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
        return torch.ops.sparsekern.linear_grad_values.default(grad, x, weight, self.granularity, *self.numbers[-2:])


def _autograd_block_linear(
    x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    op = torch.ops.sparsekern.triton_block_linear.default
    product = _TritonLinear(op, rest[:2], block_spec(values))
    return differentiable(product, rest[2], x, bias, (values, columns, offsets))


def _autograd_nm_linear(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, *rest: Any
) -> Tensor:
    op = torch.ops.sparsekern.triton_nm_linear.default
    product = _TritonLinear(op, (n, m, *rest[:2]), NM(n, m).spec)
    return differentiable(product, rest[2], x, bias, (values, positions))


# ``triton_op`` registers an autograd of its own, which refuses to differentiate; torch warns of what replaces it.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
    LIBRARY.impl("triton_block_linear", _autograd_block_linear, "Autograd", allow_override=True)
    LIBRARY.impl("triton_nm_linear", _autograd_nm_linear, "Autograd", allow_override=True)


# ---- FLOP counts ---------------------------------------------------------------------------------


@register_flop_formula([torch.ops.sparsekern.triton_block_linear, torch.ops.sparsekern.triton_nm_linear])
def _(x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, **kwargs: Any) -> int:
    return count_flops(x_shape, values_shape)
