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
from ..listings import Code
from .convolutions import Convolutions

FAMILIES = ("outputs", "tokens", "single", "vector")
"""Layouts of a loop whose cost the model knows; the others, ``pairs`` and ``tiles``, are not ranked by it."""


@dataclass(frozen=True)
class Tile:
    """What a kernel's inner loop holds in registers, from which its cost is told.

    Attributes:
        family: how the loop is laid out, one of ``FAMILIES`` (``docs/kernels.md``).
        outputs: outputs held at once.
        tokens: most tokens held at once.
        lanes: floats of a vector.
    """

    family: str
    outputs: int
    tokens: int
    lanes: int


@dataclass(frozen=True)
class KernelRecord:
    """One line of the kernel table.

    Attributes:
        name: unique name; it spells out orientation, block rows and ISA.
        backend: name of the back end that owns it.
        op: torch op that reaches it.
        granularity: kind of the granularities that it takes, such as ``block``.
        dtypes: names of the weight dtypes.
        isa: instruction set or device architecture.
        runs_here: whether this machine can execute it.
        rows: rows of a block that it takes.
        multiple: whether it takes every multiple of ``rows`` too; with 1 it takes whatever there is.
        min_tokens: fewest tokens (rows of the activation) for which it is chosen.
        max_tokens: most tokens for which it is chosen; None if there is no limit.
        only: what it takes, for people, where granularity and rows do not say it all, such as ``2:4``; None if
            they do.
        cores: those on which it is chosen before it was measured or its time predicted: ``any``, or ``amd``.
        tile: its inner loop; None where no cost is told from it.
    """

    name: str
    backend: str
    op: str
    granularity: str
    dtypes: tuple[str, ...]
    isa: str
    runs_here: bool
    rows: int = 1
    multiple: bool = True
    min_tokens: int = 0
    max_tokens: int | None = None
    only: str | None = None
    cores: str = "any"
    tile: Tile | None = None

    def takes_rows(self, rows: int) -> bool:
        """Whether it takes blocks of so many rows."""
        return rows % self.rows == 0 if self.multiple else rows == self.rows

    def covers(self, other: KernelRecord) -> bool:
        """Whether it takes the format of ``other``, in blocks of all the heights that that one takes."""
        if self.granularity != other.granularity or self.only not in (None, other.only):
            return False
        if self.multiple:
            return other.rows % self.rows == 0
        return other.rows == self.rows and not other.multiple

    @property
    def takes(self) -> str:
        """The granularities for people, such as ``16n x c``: any multiple of 16 rows, any number of columns."""
        if self.only:
            return self.only
        if self.rows == 1 and self.multiple:
            return f"{self.granularity} (any)"
        return f"{self.rows}{'n' if self.multiple else ''} x c"

    @property
    def machines(self) -> str:
        """Where it is the choice, for people, such as ``avx512 (AMD)``."""
        return self.isa if self.cores == "any" else f"{self.isa} ({self.cores.upper()})"

    @property
    def tokens(self) -> str:
        """The numbers of tokens for people, such as ``2 to 15``."""
        if self.max_tokens is None:
            return f">= {self.min_tokens}" if self.min_tokens else "any"
        return f"{self.min_tokens} to {self.max_tokens}" if self.min_tokens < self.max_tokens else f"{self.min_tokens}"


@dataclass(frozen=True)
class Request:
    """What a layer asks of a back end, everything but the number of tokens."""

    granularity: Granularity
    shape: tuple[int, int]
    dtype: torch.dtype
    device: str


class Backend(Convolutions, ABC):
    """A way to execute packed weights."""

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ()
    """Types of the devices that it is for, such as ``cuda``; empty for any. It is not asked about weights elsewhere."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of the granularities that it is for, such as ``channel``; empty for any. It is not asked about others."""
    is_last_resort: ClassVar[bool] = False
    """Whether it serves only what no kernel does, at dense speed or below."""

    @abstractmethod
    def kernels(self) -> list[KernelRecord]:
        """This back end's lines of the kernel table, those that cannot run here included."""

    @abstractmethod
    def refusal(self, request: Request) -> str | None:
        """None if the request can be served, else the reason in a few words."""

    def missing(self, request: Request) -> str | None:
        """What to install for this back end to serve a request; None if that is not what it lacks."""
        return None

    @abstractmethod
    def kernel_name(self, request: Request, tokens: int) -> str:
        """Name of the kernel that runs for so many tokens where nothing has been measured."""

    def serving(self, request: Request, stored: int, tokens: int) -> Backend:
        """The back end that :meth:`linear` leaves a product to: this one, unless another is expected to be faster.

        Args:
            request: the weight.
            stored: number of its stored values.
            tokens: rows of the activation.
        """
        return self

    def candidates(self, request: Request) -> list[KernelRecord]:
        """All kernels that can serve the request here, whatever the number of tokens; none if there is no choice."""
        return []

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

    def linear_by(
        self,
        kernel: str,
        x: Tensor,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        """:meth:`linear` with one of :meth:`candidates`; a back end that has some defines it.

        Args:
            kernel: its name; empty for the one that :meth:`kernel_name` gives.
            x: this and what follows as for :meth:`linear`.
            granularity: layout of the weight.
            shape: ``(out, in)``.
            tensors: the packed tensors.
            bias: ``[out]`` or None.
            activation: one of ``ops.ACTIVATIONS``.

        Raises:
            ValueError: there are no candidates, and one is named.
        """
        if kernel:
            raise ValueError(
                f"{self.name}: expected an empty name, for it has no kernels to choose from, got {kernel!r}"
            )
        return self.linear(x, granularity, shape, tensors, bias, activation)

    def grad_input(
        self, grad: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        """``grad @ W``, the gradient of :meth:`linear`'s input; the reference, unless a back end has a faster one.

        Args:
            grad: ``[..., out]``, the gradient of the product before its activation; any strides.
            granularity: layout of the weight.
            shape: ``(out, in)``.
            tensors: the packed tensors.

        Returns:
            ``[..., in]``: new memory.
        """
        return torch.ops.sparsekern.linear_grad_input.default(grad, tensors, granularity.spec, *shape)

    def grad_values(
        self, grad: Tensor, x: Tensor, granularity: Granularity, shape: tuple[int, int], tensors: Sequence[Tensor]
    ) -> Tensor:
        """``grad.T @ x`` at the kept places; the reference, unless a back end has a faster one.

        Args:
            grad: ``[..., out]``, as for :meth:`grad_input`.
            x: ``[..., in]``, the input of the product, with as many rows.
            granularity: layout of the weight.
            shape: ``(out, in)``.
            tensors: the packed tensors.

        Returns:
            The gradient of the packed values, of their shape: new memory, zero in the padding.
        """
        return torch.ops.sparsekern.linear_grad_values.default(grad, x, tensors, granularity.spec, *shape)

    def code(self, kernel: str, request: Request, tokens: int, target: str | None) -> Code | None:
        """What a kernel was compiled to, for people; None if this back end has no code of its own to show.

        Args:
            kernel: its name; empty for the one that this back end would choose.
            request: the weight; the same kernel may have other code for another dtype.
            tokens: rows of the activation.
            target: architecture of a GPU, such as ``sm_90``, which need not be in this machine; None for what runs
                here.

        Raises:
            UnreadableError: it has, but it cannot be read: what is missing, and how to get it.
        """
        return None


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
