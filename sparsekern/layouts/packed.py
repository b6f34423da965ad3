"""A packed weight: a granularity, a shape and a few plain tensors. The IR of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .conv import matrix_of, matrix_shape, weight_of
from .granularity import Granularity, Parts, require

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as kernel tables and records have it, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A pruned weight in the form that kernels read.

    Attributes:
        granularity: which weights were kept or dropped together.
        shape: ``(out, in)`` of the dense weight; of a convolution's, ``(out, kh * kw * in)``.
        parts: the packed tensors, named and ordered as ``granularity.part_names``.
        kernel: ``(kh, kw)`` of a convolution's weight; None for that of a linear layer.
        verified: whether the parts are known to be well formed. Kernels trust their indices, so whoever
            hands them to one verifies those of any other origin than :func:`pack` first.
    """

    granularity: Granularity
    shape: tuple[int, int]
    parts: Parts = field(repr=False)
    kernel: tuple[int, int] | None = None
    verified: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        # Computes and keeps it: compiled code must find a string there, as torch.compile would turn the
        # integers it is made from into symbols once it has met two granularities.
        _ = self.granularity.spec

    @classmethod
    def from_tensors(
        cls,
        granularity: Granularity,
        shape: tuple[int, int],
        tensors: Sequence[Tensor],
        what: str = "weight",
        kernel: tuple[int, int] | None = None,
    ) -> PackedWeight:
        """Assemble and verify a packed weight from tensors of any origin.

        Raises:
            ValueError: naming ``what`` and the tensor that is malformed.
        """
        names = granularity.part_names
        require(len(tensors) == len(names), f"{what}: expected the tensors {list(names)}, got {len(tensors)} tensors")
        packed = cls(granularity, shape, dict(zip(names, tensors, strict=True)), kernel)
        packed.verify(what)
        return packed

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight: ``(out, in)``, or ``(out, in, kh, kw)`` with the inputs of one group."""
        if self.kernel is None:
            return self.shape
        return self.shape[0], self.shape[1] // math.prod(self.kernel), *self.kernel

    @property
    def tensors(self) -> list[Tensor]:
        """The packed tensors in the order of ``granularity.part_names``."""
        return list(self.parts.values())

    @property
    def values(self) -> Tensor:
        """The tensor with the kept weights; its layout belongs to the granularity."""
        return self.parts[self.granularity.part_names[0]]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of all the packed tensors."""
        return self.values.device

    @property
    def density(self) -> float:
        """Share of the dense weight's places that are stored, in [0, 1].

        Raises:
            ValueError: the tensors are on the meta device, without the indices to count.
        """
        require(self.device.type != "meta", "density: the packed weight is on the meta device, without values")
        return self.granularity.stored(self.parts, self.shape) / (self.shape[0] * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all packed tensors, indices included."""
        return sum(t.numel() * t.element_size() for t in self.parts.values())

    def to_dense(self) -> Tensor:
        """The dense weight, ``[out, in]`` or ``[out, in, kh, kw]``, zeros where nothing is stored."""
        return weight_of(self.to_matrix(), self.kernel)

    def to_matrix(self) -> Tensor:
        """The dense weight as a matrix of ``shape``, as granularities and kernels see it."""
        return self.granularity.unpack(self.parts, self.shape)

    def verify(self, what: str = "weight") -> None:
        """Check everything that a kernel relies on.

        Raises:
            ValueError: naming ``what`` and the tensor, what was expected and what was found.
        """
        require(
            self.kernel is None or (min(self.kernel) > 0 and self.shape[1] % math.prod(self.kernel) == 0),
            f"{what}: expected a kernel (kh, kw) that divides the {self.shape[1]} columns, got {self.kernel}",
        )
        names = self.granularity.part_names
        require(tuple(self.parts) == names, f"{what}: expected the tensors {list(names)}, got {list(self.parts)}")
        require(self.device.type != "meta", f"{what}: expected tensors with values, got them on the meta device")
        for name, tensor in self.parts.items():
            require(
                tensor.is_contiguous(), f"{what}.{name}: expected a contiguous tensor, got strides {tensor.stride()}"
            )
            require(
                tensor.device == self.device,
                f"{what}.{name}: expected on {self.device} like the values, got {tensor.device}",
            )
        require(
            self.dtype in WEIGHT_DTYPES,
            f"{what}.{self.granularity.part_names[0]}: expected a floating dtype of "
            f"{', '.join(str(d) for d in WEIGHT_DTYPES)}, got {self.dtype}",
        )
        self.granularity.verify(self.parts, self.shape, what)
        require(bool(self.values.isfinite().all()), f"{what}: the packed values hold NaN or infinity")
        object.__setattr__(self, "verified", True)


def pack(weight: Tensor, granularity: Granularity, mask: Tensor | None = None) -> PackedWeight:
    """Pack a weight so that ``pack(w, g, m).to_dense()`` equals ``w * m`` bit for bit.

    Args:
        weight: ``[out, in]``, or ``[out, in, kh, kw]`` of a convolution, with the inputs of one of its groups; float32,
            bfloat16, float16 or float64, finite.
        granularity: groups that are stored whole; those of a convolution are groups of the matrix
            ``[out, kh * kw * in]``, ``weight.permute(0, 2, 3, 1).flatten(1)``.
        mask: bool, the weight's shape, True = kept; None takes the weight's zeros as the mask.
            A group with any kept weight is stored; its dropped weights are stored as zeros.

    Raises:
        TypeError: an argument is no tensor, or the dtype is not a floating one that is packed.
        ValueError: wrong shape, a mask of another shape or dtype, NaN or infinity in the weight.
    """
    check_weight(weight, granularity)
    if mask is None:
        mask = weight != 0
    else:
        _check_mask(mask, weight)
    parts = granularity.pack(matrix_of(weight.detach()), matrix_of(mask))
    shape, kernel = matrix_shape(weight.shape)
    return PackedWeight(granularity, shape, parts, kernel, verified=True)


def check_weight(weight: Tensor, granularity: Granularity, what: str = "weight") -> None:
    """Refuse a weight that ``granularity`` cannot hold; see :func:`pack` for what is raised."""
    if not isinstance(granularity, Granularity):
        raise TypeError(f"{what}: expected a granularity such as Block(16, 1), got {granularity!r}")
    if not isinstance(weight, Tensor):
        raise TypeError(f"{what}: expected a tensor [out, in] or [out, in, kh, kw], got {type(weight).__name__}")
    if weight.layout != torch.strided or weight.dtype not in WEIGHT_DTYPES:
        raise TypeError(
            f"{what}: expected a dense tensor of {', '.join(str(d) for d in WEIGHT_DTYPES)}, "
            f"got {weight.dtype} ({weight.layout})"
        )
    require(
        weight.dim() in (2, 4),
        f"{what}: expected two dimensions [out, in], or four [out, in, kh, kw], got shape {list(weight.shape)}",
    )
    granularity.check_shape(matrix_shape(weight.shape)[0], what)
    require(bool(weight.isfinite().all()), f"{what}: holds NaN or infinity; a mask over it would hide the fault")


def _check_mask(mask: Tensor, weight: Tensor) -> None:
    """Refuse a mask that does not belong to ``weight``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: expected a bool tensor (True = kept), got {got}")
    require(
        mask.shape == weight.shape and mask.device == weight.device,
        f"mask: expected shape {list(weight.shape)} on {weight.device} like the weight, "
        f"got {list(mask.shape)} on {mask.device}",
    )
