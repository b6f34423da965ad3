"""The middle end: what kernels exist, what they cost here, which one serves a weight."""

from .choose import Choice, HostPlan, host_plan, kernel_name, renew
from .convolutions import ConvCall, ConvRequest
from .cost import Cost, Work, predict
from .measure import PackedLayer, Sample, Timing, interleave, time_conv2d, time_linear
from .rates import Rates, measure_rates
from .registry import (
    Backend,
    KernelRecord,
    Request,
    Tile,
    backends,
    kernels,
    register_backend,
)
from .select import conv_kernel_name, refusals, select, select_conv
from .store import Entry, Store, host_key
from .target import Target

__all__ = [
    "Backend",
    "Choice",
    "ConvCall",
    "ConvRequest",
    "Cost",
    "Entry",
    "HostPlan",
    "KernelRecord",
    "PackedLayer",
    "Rates",
    "Request",
    "Sample",
    "Store",
    "Target",
    "Tile",
    "Timing",
    "Work",
    "backends",
    "conv_kernel_name",
    "host_key",
    "host_plan",
    "interleave",
    "kernel_name",
    "kernels",
    "measure_rates",
    "predict",
    "refusals",
    "register_backend",
    "renew",
    "select",
    "select_conv",
    "time_conv2d",
    "time_linear",
]
