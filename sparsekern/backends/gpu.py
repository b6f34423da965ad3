"""What the back ends of GPUs have in common: each hands a product over where the model says another is faster."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..layouts import Granularity, parse
from ..plan import gpu
from ..plan.registry import Backend, Request, backend_named
from ..plan.select import willing
from .gpu_conv import GpuConvolutions


class GpuBackend(GpuConvolutions):
    """A back end of GPUs."""

    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def linear(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        values = tensors[0]
        tokens, stored = x.numel() // shape[1], values.numel()
        name = self.name
        if not torch.compiler.is_compiling():
            name = _fastest(granularity.spec, shape, values.dtype, stored, tokens)
        elif _is_static(tokens, stored):
            name = _fastest(granularity.spec, shape, values.dtype, int(stored), int(tokens))
        if name == self.name:
            return self.product(x, granularity, shape, tensors, bias, activation)
        other = backend_named(name)
        multiply = other.product if isinstance(other, GpuBackend) else other.linear
        return multiply(x, granularity, shape, tensors, bias, activation)

    @abstractmethod
    def product(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        """:meth:`linear` by this back end's own kernels."""

    def serving(self, request: Request, stored: int, tokens: int) -> Backend:
        return backend_named(_fastest(request.granularity.spec, request.shape, request.dtype, stored, tokens))


def _fastest(spec: str, shape: tuple[int, int], dtype: torch.dtype, stored: int, tokens: int) -> str:
    return _ranked(spec, shape, dtype, stored, tokens)


# As in plan/select.py: plain data goes in and out, which the compiler keeps as a constant.
_fastest._dynamo_marked_constant = True  # type: ignore[attr-defined]


# Pruning step by step makes a new product of each number of stored values.
@lru_cache(maxsize=4096)
def _ranked(spec: str, shape: tuple[int, int], dtype: torch.dtype, stored: int, tokens: int) -> str:
    product = gpu.Product(parse(spec), shape, stored, tokens, dtype.itemsize)
    return gpu.fastest(product, least_capability(), _offered(spec, shape, dtype))


@cache
def _offered(spec: str, shape: tuple[int, int], dtype: torch.dtype) -> tuple[str, ...]:
    return tuple(backend.name for backend in willing(Request(parse(spec), shape, dtype, "cuda")))


@cache
def least_capability() -> int:
    """Compute capability, times ten, of the least able GPU: a request does not say which one it is for."""
    capabilities = (torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count()))
    # None, where a graph for a GPU is made without one: then it is taken for the oldest.
    return min((10 * major + minor for major, minor in capabilities), default=0)


def _is_static(*numbers: int) -> bool:
    """Whether a compiler knows the numbers, which it may leave open."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(number) for number in numbers)
