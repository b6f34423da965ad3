"""What a peer is: a library that multiplies activations by a weight which is known beforehand."""

from __future__ import annotations

import importlib
import importlib.metadata
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Call = Callable[[], Any]

CHOICE_CALLS = 5
WARM_UP = 0.02  # seconds; on two threads small calls take a multiple until these lie on two cores


@dataclass(frozen=True)
class Problem:
    """One matrix product, as every peer gets it.

    Attributes:
        weight: ``[out, in]``, float32, C order; zero where a weight was dropped.
        x: ``[tokens, in]``, float32, C order.
        block: rows and columns of the weight that were kept or dropped together; (1, 1) for single weights.
        threads: how many the peer may use.
    """

    weight: Array
    x: Array
    block: tuple[int, int] = (1, 1)
    threads: int = 1


def aligned(shape: tuple[int, ...]) -> Array:
    """An uninitialised array that starts a cache line, as PyTorch's do and NumPy's do not.

    Vector loads that cross cache lines halve the speed of some libraries.
    """
    size = int(np.prod(shape))
    memory = np.empty(size + 16, np.float32)
    start = -memory.ctypes.data % 64 // memory.itemsize
    return memory[start : start + size].reshape(shape)


def aligned_copy(array: Array) -> Array:
    """See ``aligned``."""
    copy = aligned(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True)
class Prepared:
    """A peer that is ready to multiply one problem's activations.

    Attributes:
        call: does all of the work and returns ``[tokens, out]``, in any memory order, as something that NumPy reads.
        variant: which of the peer's ways this is, if it has several.
    """

    call: Call
    variant: str = ""


class Contestant(Protocol):
    """A peer at the start of one case."""

    variant: str

    def output(self) -> Array:
        """``[tokens, out]`` of the case's problem."""

    def seconds(self) -> float:
        """How long one call takes now, its threads awake and another weight last in the caches."""


class Local:
    """A contestant in this process.

    Right before a timed call the same library multiplies by another weight of the same size, untimed and for some
    milliseconds. That wakes its threads, which fell asleep while others ran, and passes another weight through the
    caches, as in a model.

    Args:
        problem: what is timed.
        neighbour: what is multiplied before.
    """

    def __init__(self, problem: Prepared, neighbour: Prepared) -> None:
        self.variant = problem.variant
        self._timed, self._before = problem.call, neighbour.call

    def output(self) -> Array:
        # A copy, as some libraries write their next output over this one.
        return np.asarray(self._timed()).copy()

    def seconds(self) -> float:
        start = time.perf_counter()
        self._before()
        while time.perf_counter() - start < WARM_UP:
            self._before()
        start = time.perf_counter()
        self._timed()
        return time.perf_counter() - start


class Peer(ABC):
    """What takes part in a comparison.

    Attributes:
        name: in results and on the command line.
        kind: "dense" if it multiplies all weights, whatever their values; else "sparse".
        licence: what a reader of the results should know of it; empty if it allows everything.
    """

    name: str
    kind: str
    licence: str = ""

    @abstractmethod
    def absent(self) -> str | None:
        """Why it cannot be used here, with what to do; None if it can."""

    @abstractmethod
    def version(self) -> str:
        """Of the library."""

    def refusal(self, problem: Problem) -> str | None:
        """Why it has no way to compute this problem; None if it has."""
        return None

    @abstractmethod
    def enter(self, problem: Problem, neighbour: Problem) -> Contestant:
        """Prepare both problems; see ``Local``.

        Raises:
            Exception: whatever the library raises; it is recorded as the case's result.
        """


class Library(Peer):
    """A library, or one of its ways, in this process. Subclasses set the attributes and define ``prepare``.

    Attributes:
        module: what is imported to see whether the library is there.
        package: its distribution, which also tells the version.
        install: what to give to pip, where that is not the distribution's name.
        own_process: it brings threads or symbols that would disturb others in the same process.
        own_environment: it cannot be installed beside the others.
    """

    module: ClassVar[str]
    package: ClassVar[str]
    install: ClassVar[str] = ""
    own_process: ClassVar[bool] = False
    own_environment: ClassVar[bool] = False

    def load(self) -> None:
        """Import what is needed.

        Raises:
            ImportError, OSError, RuntimeError: it is not there, or does not work here.
        """
        importlib.import_module(self.module)

    def absent(self) -> str | None:
        try:
            self.load()
        except (ImportError, OSError, RuntimeError) as failure:
            return f"{failure} ({self.how_to_install})"
        return None

    @property
    def how_to_install(self) -> str:
        """In a few words."""
        how = f"pip install {self.install or self.package}"
        if self.own_environment:
            how += f" in an environment of its own, then --python {self.name}=ITS_PYTHON"
        return how

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    @abstractmethod
    def prepare(self, problem: Problem) -> Prepared:
        """Do once what does not depend on the activations."""

    def enter(self, problem: Problem, neighbour: Problem) -> Contestant:
        return Local(self.prepare(problem), self.prepare(neighbour))


def fastest(ways: Mapping[str, Call]) -> Prepared:
    """The way with the least median time over a few calls; ways that raise are out.

    Raises:
        Exception: that of the last way, if all raise.
    """
    times: dict[str, float] = {}
    failure: Exception | None = None
    for name, call in ways.items():
        try:
            call()
            contestant = Local(Prepared(call), Prepared(call))
            times[name] = statistics.median(contestant.seconds() for _ in range(CHOICE_CALLS))
        except Exception as error:
            failure = error
    if failure is not None and not times:
        raise failure
    best = min(times, key=times.__getitem__)
    return Prepared(ways[best], best)


def need_square_blocks(problem: Problem) -> str | None:
    """The refusal of BSR formats: their blocks are square, and 1x1 is CSR."""
    rows, cols = problem.block
    return None if rows == cols > 1 else f"BSR of square blocks only, not {rows}x{cols}"
