"""What a granularity is: which weights must be kept or dropped together.

A granularity owns everything about its packed form: how scores become a mask, how a weight is
packed and unpacked, and what makes a packed form legal. Adding one is adding one file here; the
reference back end, saving, the report and the benchmarks then know it without further edits.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

Parts = dict[str, Tensor]
"""The plain tensors of a packed weight, by name, in the order of ``Granularity.part_names``."""

_REGISTRY: dict[str, type[Granularity]] = {}


class Granularity(ABC):
    """Base class of the granularities; subclasses are frozen dataclasses with integer fields.

    A weight is always seen as a matrix ``[out, in]``, written ``[N, K]`` below.
    """

    kind: ClassVar[str]
    """Name in the registry, in ``spec`` and in saved files."""

    @property
    @abstractmethod
    def part_names(self) -> tuple[str, ...]:
        """Names of the packed tensors; the first one holds the values."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for people, such as ``16x1``."""

    @property
    def implied_sparsity(self) -> float | None:
        """Share of the weights that the pattern itself drops; None where the user chooses it."""
        return None

    @cached_property
    def spec(self) -> str:
        """Text form that :func:`parse` reads back, such as ``block(16,1)``."""
        values = [getattr(self, f.name) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return f"{self.kind}({','.join(map(str, values))})"

    @abstractmethod
    def check_shape(self, shape: tuple[int, int], what: str = "weight") -> None:
        """Raise ``ValueError`` naming ``what`` when a weight of ``shape`` cannot have this form."""

    @abstractmethod
    def group_sums(self, scores: Tensor) -> Tensor:
        """Sum scores ``[N, K]`` over each group; one entry a group, any shape."""

    @abstractmethod
    def spread(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        """Inverse of the grouping: give each weight of ``[N, K]`` the entry of its group."""

    def mask(self, scores: Tensor, sparsity: float | None) -> Tensor:
        """Keep the groups with the highest summed scores.

        Args:
            scores: importance of each weight, ``[N, K]``, finite.
            sparsity: share of the groups to drop, in [0, 1).

        Returns:
            Bool tensor ``[N, K]``, True = kept. At least one group is kept.

        Raises:
            ValueError: ``sparsity`` is None, though this granularity does not imply one.
        """
        if sparsity is None:
            raise ValueError(f"{self.label} needs a sparsity in [0, 1): it does not imply one")
        sums = self.group_sums(scores)
        keep = max(1, round(sums.numel() * (1.0 - float(sparsity))))
        kept = torch.zeros(sums.numel(), dtype=torch.bool, device=scores.device)
        kept[sums.flatten().topk(keep).indices] = True
        return self.spread(kept.view(sums.shape), (scores.shape[0], scores.shape[1]))

    @abstractmethod
    def pack(self, weight: Tensor, mask: Tensor) -> Parts:
        """Pack ``weight`` ``[N, K]`` where ``mask`` is True; a partly kept group is stored whole."""

    @abstractmethod
    def unpack(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        """Dense ``[N, K]`` with zeros where nothing is stored."""

    @abstractmethod
    def gather(self, dense: Tensor, parts: Parts) -> Tensor:
        """Read ``dense`` ``[N, K]`` at the stored places, in the layout of the values."""

    @abstractmethod
    def verify(self, parts: Parts, shape: tuple[int, int], what: str) -> None:
        """Raise ``ValueError`` naming ``what`` unless kernels may safely read ``parts``."""

    @abstractmethod
    def stored(self, parts: Parts, shape: tuple[int, int]) -> int:
        """Number of places of the ``[N, K]`` matrix that are stored."""


def register(cls: type[Granularity]) -> type[Granularity]:
    """Class decorator: make a granularity known by its ``kind``.

    Raises:
        ValueError: the kind belongs to another class. Only a new definition of the same class may take its
            place, as when a notebook cell runs twice.
    """
    known = _REGISTRY.get(cls.kind, cls)
    require(
        (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__),
        f"{cls.__qualname__}: expected a kind of its own, got {cls.kind!r}, which is "
        f"{known.__module__}.{known.__qualname__}; choose another kind",
    )
    _REGISTRY[cls.kind] = cls
    return cls


def registered() -> dict[str, type[Granularity]]:
    """The known granularities by kind, in order of registration."""
    return dict(_REGISTRY)


def parse(spec: str) -> Granularity:
    """Read a granularity from its ``spec``, such as ``block(16,1)``.

    Raises:
        ValueError: unknown kind, or arguments that the kind refuses.
    """
    found = re.fullmatch(r"(\w+)\(((?:\d+(?:,\d+)*)?)\)", spec)
    if found is None or found[1] not in _REGISTRY:
        raise ValueError(f"unknown granularity {spec!r}: expected one of {sorted(_REGISTRY)}, as kind(arguments)")
    arguments = [int(a) for a in found[2].split(",") if a]
    try:
        return _REGISTRY[found[1]](*arguments)
    except TypeError as error:
        raise ValueError(f"granularity {spec!r} has the wrong number of arguments: {error}") from None


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition``: the verifiers' one-line form."""
    if not condition:
        raise ValueError(message)


def require_matrix(shape: tuple[int, ...], what: str) -> None:
    """Refuse anything but a matrix with at least one row and one column."""
    require(
        len(shape) == 2 and min(shape) > 0,
        f"{what}: expected a matrix [out, in] with both sides > 0, got shape {list(shape)}",
    )
