"""The kernel table and the back ends behind it.

Back ends register themselves here and are asked here; nothing else in the package knows one by
name. Registration order is preference: the first back end that supports a request serves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layouts import Granularity


@dataclass(frozen=True)
class KernelRecord:
    """One line of the kernel table.

    Attributes:
        name: unique name; it spells out orientation, block rows and ISA.
        backend: name of the back end that owns it.
        op: torch op that reaches it.
        granularity: what it accepts, as text, such as ``16n x c``.
        dtypes: names of the weight dtypes.
        isa: instruction set or device architecture.
        tokens: numbers of tokens (rows of the activation) for which it is chosen.
        runs_here: whether this machine can execute it.
    """

    name: str
    backend: str
    op: str
    granularity: str
    dtypes: tuple[str, ...]
    isa: str
    tokens: str
    runs_here: bool


@dataclass(frozen=True)
class Request:
    """What a layer asks of a back end, everything but the number of tokens."""

    granularity: Granularity
    shape: tuple[int, int]
    dtype: torch.dtype
    device: str


class Backend(ABC):
    """A way to execute packed weights."""

    name: ClassVar[str]

    @abstractmethod
    def kernels(self) -> list[KernelRecord]:
        """This back end's lines of the kernel table, those that cannot run here included."""

    @abstractmethod
    def refusal(self, request: Request) -> str | None:
        """None if the request can be served, else the reason in a few words."""

    @abstractmethod
    def kernel_name(self, request: Request, tokens: int) -> str:
        """Name of the kernel that will run for so many tokens."""

    @abstractmethod
    def linear(
        self,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        """``activation(x @ W.T + bias)``, with ``W`` packed in ``tensors``.

        Called with nothing that :meth:`refusal` refuses, outside autocast; gradients are the caller's. Callers
        have verified the packed tensors, and checked shapes, dtypes and devices with ``ops.check_linear``.

        Args:
            x: ``[..., in]``, the weight's dtype and device; any leading dimensions and strides, also no tokens.
            granularity: layout of the weight.
            shape: ``(out, in)``.
            tensors: the packed tensors in the order of ``granularity.part_names``.
            bias: ``[out]``, the weight's dtype and device, any stride; or None.
            activation: one of ``ops.ACTIVATIONS``.

        Returns:
            ``[..., out]``, contiguous, of the weight's dtype: new memory.
        """


_BACKENDS: dict[str, Backend] = {}


def register_backend(backend: Backend, *, first: bool = False) -> None:
    """Make a back end available, behind the others or (``first``) before them.

    Raises:
        ValueError: its name is that of another class. Only one of the same class may take its place, as when
            a notebook cell runs twice.
    """
    known, own = type(_BACKENDS.get(backend.name, backend)), type(backend)
    if (known.__module__, known.__qualname__) != (own.__module__, own.__qualname__):
        raise ValueError(
            f"{own.__qualname__}: expected a name of its own, got {backend.name!r}, which is "
            f"{known.__module__}.{known.__qualname__}; choose another name"
        )
    others = {name: other for name, other in _BACKENDS.items() if name != backend.name}
    this = {backend.name: backend}
    _BACKENDS.clear()
    _BACKENDS.update({**this, **others} if first else {**others, **this})


def backends() -> list[Backend]:
    """The registered back ends in order of preference."""
    return list(_BACKENDS.values())


def backend_named(name: str) -> Backend:
    """The registered back end of that name."""
    return _BACKENDS[name]


def kernels() -> list[KernelRecord]:
    """The kernel table of every back end, in order of preference."""
    return [record for backend in _BACKENDS.values() for record in backend.kernels()]
