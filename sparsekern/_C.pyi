"""The control plane of the native library; importing it registers the CPU operators."""

from collections.abc import Sequence
from typing import TypedDict

class _KernelLine(TypedDict):
    name: str
    format: str
    numbers: str
    rows: int
    multiple: bool
    isa: str
    min_tokens: int
    cores: str
    runs_here: bool
    family: str
    panel: int
    outputs: int
    lanes: int

class _GradKernelLine(TypedDict):
    name: str
    grad: str
    format: str
    rows: int
    multiple: bool
    isa: str
    runs_here: bool

class _ConvKernelLine(TypedDict):
    name: str
    format: str
    rows: int
    multiple: bool
    isa: str
    runs_here: bool
    cores: str

class _CudaKernelLine(TypedDict):
    name: str
    format: str
    purpose: str
    height: int
    min_tokens: int
    max_tokens: int | None

def isa_supported() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def kernels() -> list[_KernelLine]: ...
def grad_kernels() -> list[_GradKernelLine]: ...
def conv_kernels() -> list[_ConvKernelLine]: ...
def cuda_kernels() -> list[_CudaKernelLine]: ...
def choose(format: str, rows: int, tokens: int, values: str = "float32") -> str: ...
def choose_conv(
    format: str,
    rows: int,
    inputs: int,
    images: Sequence[int],
    channels_last: bool,
    geometry: Sequence[int],
    values: str = "float32",
) -> str: ...
def fma_peak_gflops(seconds: float, values: str = "float32") -> float: ...
def multiply_adds_a_second(lanes: int, seconds: float) -> float: ...
def multiply_add_latency(seconds: float) -> float: ...
def loads_a_second(lanes: int, seconds: float) -> float: ...
def widened_a_second(seconds: float) -> float: ...
def read_bandwidth_gbs(bytes: int, seconds: float) -> float: ...
