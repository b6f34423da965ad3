"""Which convolutions the Triton kernels take."""

from __future__ import annotations

from collections.abc import Sequence

from ...layouts import Block, Granularity
from ..gpu_conv import described


def conv_refusal(granularity: Granularity, shape: Sequence[int], groups: int) -> str | None:
    """Why the kernel of convolutions does not take a weight ``(out, in / groups, kh, kw)``, if it does not.

    Taken for granted is that the kernel of products takes its matrix.
    """
    outputs, channels, *_ = shape
    if not isinstance(granularity, Block):
        return f"no kernel for {described(shape, groups)} with {granularity.label}; blocks have one"
    if channels % granularity.cols:
        return (
            f"blocks of {granularity.cols} columns reach from one pixel of the kernel into the next, "
            f"with {channels} channels"
        )
    if groups > 1 and outputs // groups % granularity.rows:
        return f"blocks of {granularity.rows} rows lie in several groups of {outputs // groups} outputs"
    return None
