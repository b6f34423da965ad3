"""What the machine can do: the facts that plans and reports are made from."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

import torch

from .._native import native


@dataclass(frozen=True)
class Target:
    """The machine as the kernels see it.

    Attributes:
        cpu: processor name.
        isas: instruction sets that kernels exist for and this CPU and its system support, ascending.
        isa: the level in use; ``SPARSEKERN_ISA`` lowers it.
        threads: size of torch's thread pool.
        cores: processors of the machine.
        native: whether the compiled kernels are installed.
    """

    cpu: str
    isas: tuple[str, ...]
    isa: str
    threads: int
    cores: int
    native: bool

    @classmethod
    def detect(cls) -> Target:
        """Read the present state of this machine and process."""
        return cls(
            cpu=cpu_name(),
            isas=tuple(native.isa_supported()) if native else (),
            isa=native.isa() if native else "none",
            threads=torch.get_num_threads(),
            cores=os.cpu_count() or 1,
            native=native is not None,
        )


def cpu_name() -> str:
    """Processor name as the operating system gives it."""
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


@cache
def cpu_identity() -> str:
    """Its name with family and model: hypervisors shorten the name, and these say which core it is."""
    try:
        with open("/proc/cpuinfo") as info:
            lines = info.read().split("\n\n")[0].splitlines()
    except OSError:
        return cpu_name()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{cpu_name()} (family {facts.get('cpu family', '?')} model {facts.get('model', '?')})"
