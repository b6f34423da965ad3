"""The torch ops of gradients: schema, reference implementation, fake, FLOP count.

Each product of ``ops.py`` has two: with respect to the input, ``grad @ W``, and to the packed values, ``grad.T @ x`` at
the kept places only. Native code adds faster implementations of those of the formats that it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .layouts import NM, parse
from .ops import LIBRARY, block_spec, check_devices, count_flops, name_parts, refuse_double_backward, refuse_kernel

LIBRARY.define(
    "linear_grad_input(Tensor grad, Tensor[] weight, str granularity, int out_features, int in_features) -> Tensor"
)
LIBRARY.define(
    "linear_grad_values(Tensor grad, Tensor x, Tensor[] weight, str granularity, int out_features,"
    " int in_features) -> Tensor"
)
LIBRARY.define(
    "block_linear_grad_input(Tensor grad, Tensor values, Tensor columns, Tensor offsets, int out_features,"
    " int in_features, str kernel) -> Tensor"
)
LIBRARY.define(
    "block_linear_grad_values(Tensor grad, Tensor x, Tensor values, Tensor columns, Tensor offsets, int out_features,"
    " int in_features, str kernel) -> Tensor"
)
LIBRARY.define(
    "nm_linear_grad_input(Tensor grad, Tensor values, Tensor positions, int n, int m, int out_features,"
    " int in_features, str kernel) -> Tensor"
)
LIBRARY.define(
    "nm_linear_grad_values(Tensor grad, Tensor x, Tensor values, Tensor positions, int n, int m, int out_features,"
    " int in_features, str kernel) -> Tensor"
)


# ---- reference implementations ------------------------------------------------------------------


@torch.library.impl(LIBRARY, "linear_grad_input", "CompositeExplicitAutograd")
def _linear_grad_input(
    grad: Tensor, weight: list[Tensor], granularity: str, out_features: int, in_features: int
) -> Tensor:
    layout = parse(granularity)
    dense = layout.unpack(name_parts(layout, weight), (out_features, in_features))
    with torch._C._DisableAutocast():
        return grad @ dense


@torch.library.impl(LIBRARY, "linear_grad_values", "CompositeExplicitAutograd")
def _linear_grad_values(
    grad: Tensor, x: Tensor, weight: list[Tensor], granularity: str, out_features: int, in_features: int
) -> Tensor:
    layout = parse(granularity)
    with torch._C._DisableAutocast():
        dense = grad.reshape(-1, out_features).T @ x.reshape(-1, in_features)
    return layout.gather(dense, name_parts(layout, weight))


@torch.library.impl(LIBRARY, "block_linear_grad_input", "CompositeExplicitAutograd")
def _block_linear_grad_input(
    grad: Tensor,
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    out_features: int,
    in_features: int,
    kernel: str,
) -> Tensor:
    refuse_kernel(kernel, grad, "sparsekern::block_linear_grad_input")
    return _linear_grad_input(grad, [values, columns, offsets], block_spec(values), out_features, in_features)


@torch.library.impl(LIBRARY, "block_linear_grad_values", "CompositeExplicitAutograd")
def _block_linear_grad_values(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    out_features: int,
    in_features: int,
    kernel: str,
) -> Tensor:
    refuse_kernel(kernel, x, "sparsekern::block_linear_grad_values")
    return _linear_grad_values(grad, x, [values, columns, offsets], block_spec(values), out_features, in_features)


@torch.library.impl(LIBRARY, "nm_linear_grad_input", "CompositeExplicitAutograd")
def _nm_linear_grad_input(
    grad: Tensor,
    values: Tensor,
    positions: Tensor,
    n: int,
    m: int,
    out_features: int,
    in_features: int,
    kernel: str,
) -> Tensor:
    refuse_kernel(kernel, grad, "sparsekern::nm_linear_grad_input")
    return _linear_grad_input(grad, [values, positions], NM(n, m).spec, out_features, in_features)


@torch.library.impl(LIBRARY, "nm_linear_grad_values", "CompositeExplicitAutograd")
def _nm_linear_grad_values(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    n: int,
    m: int,
    out_features: int,
    in_features: int,
    kernel: str,
) -> Tensor:
    refuse_kernel(kernel, x, "sparsekern::nm_linear_grad_values")
    return _linear_grad_values(grad, x, [values, positions], NM(n, m).spec, out_features, in_features)


# ---- fakes ---------------------------------------------------------------------------------------


@torch.library.register_fake("sparsekern::linear_grad_input", lib=LIBRARY)
def _(grad: Tensor, weight: list[Tensor], granularity: str, out_features: int, in_features: int) -> Tensor:
    return _fake_grad_input(grad, weight, in_features, "sparsekern::linear_grad_input")


@torch.library.register_fake("sparsekern::linear_grad_values", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, weight: list[Tensor], *rest: Any) -> Tensor:
    return _fake_grad_values(grad, x, weight, "sparsekern::linear_grad_values")


@torch.library.register_fake("sparsekern::block_linear_grad_input", lib=LIBRARY)
def _(
    grad: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, out_features: int, in_features: int, kernel: str
) -> Tensor:
    return _fake_grad_input(grad, [values, columns, offsets], in_features, "sparsekern::block_linear_grad_input")


@torch.library.register_fake("sparsekern::block_linear_grad_values", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    return _fake_grad_values(grad, x, [values, columns, offsets], "sparsekern::block_linear_grad_values")


@torch.library.register_fake("sparsekern::nm_linear_grad_input", lib=LIBRARY)
def _(
    grad: Tensor, values: Tensor, positions: Tensor, n: int, m: int, out_features: int, in_features: int, kernel: str
) -> Tensor:
    return _fake_grad_input(grad, [values, positions], in_features, "sparsekern::nm_linear_grad_input")


@torch.library.register_fake("sparsekern::nm_linear_grad_values", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, values: Tensor, positions: Tensor, *rest: Any) -> Tensor:
    return _fake_grad_values(grad, x, [values, positions], "sparsekern::nm_linear_grad_values")


def _fake_grad_input(grad: Tensor, weight: Sequence[Tensor], in_features: int, what: str) -> Tensor:
    check_devices(grad, weight, None, what)
    return grad.new_empty(*grad.shape[:-1], in_features)


def _fake_grad_values(grad: Tensor, x: Tensor, weight: Sequence[Tensor], what: str) -> Tensor:
    check_devices(grad, weight, None, what)
    check_devices(x, weight, None, what)
    return torch.empty_like(weight[0])


# ---- autograd ------------------------------------------------------------------------------------


for _op in ("linear", "block_linear", "nm_linear"):
    for _of in ("input", "values"):
        torch.library.register_autograd(f"sparsekern::{_op}_grad_{_of}", refuse_double_backward, lib=LIBRARY)


# ---- FLOP counts ---------------------------------------------------------------------------------


@register_flop_formula(torch.ops.sparsekern.linear_grad_input)
def _(grad_shape: Sequence[int], weight_shapes: Sequence[Sequence[int]], *rest: Any, **kwargs: Any) -> int:
    return count_flops(grad_shape, weight_shapes[0])


@register_flop_formula(torch.ops.sparsekern.linear_grad_values)
def _(
    grad_shape: Sequence[int], x_shape: Sequence[int], weight_shapes: Sequence[Sequence[int]], *rest: Any, **kwargs: Any
) -> int:
    return count_flops(grad_shape, weight_shapes[0])


@register_flop_formula([torch.ops.sparsekern.block_linear_grad_input, torch.ops.sparsekern.nm_linear_grad_input])
def _(grad_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, **kwargs: Any) -> int:
    return count_flops(grad_shape, values_shape)


@register_flop_formula([torch.ops.sparsekern.block_linear_grad_values, torch.ops.sparsekern.nm_linear_grad_values])
def _(grad_shape: Sequence[int], x_shape: Sequence[int], values_shape: Sequence[int], *rest: Any, **kwargs: Any) -> int:
    return count_flops(grad_shape, values_shape)
