"""The middle end: what kernels exist, what they cost here, which one serves a weight."""

from .measure import Timing, time_linear
from .registry import (
    Backend,
    KernelRecord,
    Request,
    backends,
    kernels,
    register_backend,
    unregister_backend,
)
from .select import refusals, select
from .target import Target

__all__ = [
    "Backend",
    "KernelRecord",
    "Request",
    "Target",
    "Timing",
    "backends",
    "kernels",
    "refusals",
    "register_backend",
    "select",
    "time_linear",
    "unregister_backend",
]
