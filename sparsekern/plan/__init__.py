"""The middle end: what kernels exist, what they cost here, which one serves a weight."""

from .measure import PackedLayer, Sample, Timing, interleave, time_linear
from .registry import (
    Backend,
    KernelRecord,
    Request,
    backends,
    kernels,
    register_backend,
)
from .select import refusals, select
from .target import Target

__all__ = [
    "Backend",
    "KernelRecord",
    "PackedLayer",
    "Request",
    "Sample",
    "Target",
    "Timing",
    "backends",
    "interleave",
    "kernels",
    "refusals",
    "register_backend",
    "select",
    "time_linear",
]
