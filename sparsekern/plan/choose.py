"""Which kernel runs a product, among those of a back end that could.

What was measured on this host comes first (``python -m sparsekern tune``), for cases near those that were. Then the
cost model, where the host's rates have been measured. On a host that was never tuned, and for the compiler's dynamic
shapes, the back end chooses itself: the first line of its table that fits.

Nothing is measured here, and the disk is read once in a process, at the first product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .._native import native
from ..layouts import Granularity, dtype_name, parse
from .cost import Cost, Work, predict
from .rates import Rates
from .registry import Backend, Request, backend_named
from .select import select
from .store import Entry, Store, host_key

MARGIN = 1.1
"""The model's choice must promise so much: it is no better than that, and the table's order was measured too."""

NEAR = 1.5
"""Factor by which each side and the density of a case may differ from one that was measured."""
NEAR_TOKENS = 1.1
EXACT_TOKENS = 64
"""Up to here a token more or less may leave a vector half empty, and only the same number counts as near."""

MOST_CHOSEN = 4096
"""Decisions that are remembered: pruning step by step makes a new product of each number of stored values."""


@dataclass(frozen=True)
class Choice:
    """A kernel and why it is taken.

    Attributes:
        kernel: its name; empty if the back end is to choose.
        why: ``measured``, ``predicted``, or ``table`` for the first line that fits.
        costs: what the model says about each candidate, if it knows the host.
        entry: the measurement that decided.
    """

    kernel: str
    why: str
    costs: Mapping[str, Cost] = field(default_factory=dict)
    entry: Entry | None = None


class HostPlan:
    """What is known of this host, at every instruction set.

    Args:
        store: where it is kept.

    Attributes:
        store: the same.
        rates: of the instruction sets that have been tuned.
        entries: what was measured with each.
        tuned: whether anything is known that could change a choice.
        chosen: what was decided from these for the products of this process.
    """

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self.refresh()

    def refresh(self) -> None:
        """Read anew what the store knows, which may be more than at first; other threads may be choosing."""
        rates: dict[str, Rates] = {}
        entries: dict[str, list[Entry]] = {}
        trouble = None
        for isa in native.isa_supported() if native and not self.store.is_empty() else ():
            known = self.store.read(host_key(isa))
            try:
                if known.rates is not None:
                    rates[isa] = Rates.of_record(known.rates, isa)
            except ValueError as error:
                trouble = str(error)
            if known.entries:
                entries[isa] = known.entries
        self.store.trouble = self.store.trouble or trouble
        self.rates, self.entries, self.tuned = rates, entries, bool(rates or entries)
        # Last: who holds the old one writes what follows from the old facts there.
        self.chosen: dict[tuple[Any, ...], str] = {}

    def choose(self, backend: Backend, request: Request, stored: int, tokens: int) -> Choice:
        """The kernel for a product, whatever the number of threads: its sums must not depend on that.

        Args:
            backend: the one that serves the request.
            request: the weight.
            stored: number of its stored values.
            tokens: rows of the activation.
        """
        isa = native.isa() if native else ""
        candidates = {record.name: record for record in backend.candidates(request)}
        if tokens == 0 or len(candidates) < 2:
            return Choice("", "table")
        out_features, in_features = request.shape
        density = stored / (out_features * in_features)
        fewest, most = alike(tokens)
        work = Work(out_features, in_features, density, most, request.dtype == torch.bfloat16)
        costs: dict[str, Cost] = {}
        if rates := self.rates.get(isa):
            costs = {n: predict(r.tile, work, rates) for n, r in candidates.items() if r.tile}
        near = [
            entry
            for entry in self.entries.get(isa, ())
            if entry.kernel in candidates and _is_near(entry, request, work, fewest)
        ]
        if near:
            entry = min(near, key=lambda entry: (_distance(entry, work, fewest), entry.threads))
            return Choice(entry.kernel, "measured", costs, entry)
        first = backend.kernel_name(request, most)
        best = min(costs, key=lambda name: costs[name].seconds, default=first)
        if first in costs and costs[first].seconds > MARGIN * costs[best].seconds:
            return Choice(best, "predicted", costs)
        return Choice("", "table", costs)


def alike(tokens: int) -> tuple[int, int]:
    """The fewest and the most tokens of the products that are decided together with one of so many.

    Up to 256 each number stands for itself; beyond, an eighth of a factor of two, for models of ever-changing lengths.
    """
    if tokens <= 256:
        return tokens, tokens
    step = 1 << ((tokens - 1).bit_length() - 4)
    most = -(-tokens // step) * step
    return most - step + 1, most


def _is_near(entry: Entry, request: Request, work: Work, fewest: int) -> bool:
    if (entry.granularity, entry.dtype) != (request.granularity.spec, dtype_name(request.dtype)):
        return False
    few = min(entry.tokens, work.tokens) <= EXACT_TOKENS
    return all(
        ratio <= limit
        for ratio, limit in (
            (_ratio(entry.out_features, work.out_features), NEAR),
            (_ratio(entry.in_features, work.in_features), NEAR),
            (_ratio(entry.density, work.density), NEAR),
            (_tokens_apart(entry, work, fewest), 1 if few else NEAR_TOKENS),
        )
    )


def _distance(entry: Entry, work: Work, fewest: int) -> float:
    return (
        _ratio(entry.out_features, work.out_features)
        * _ratio(entry.in_features, work.in_features)
        * _ratio(entry.density, work.density)
        * _tokens_apart(entry, work, fewest)
    )


def _tokens_apart(entry: Entry, work: Work, fewest: int) -> float:
    """Ratio to the nearest of the numbers that are decided together: a measured case is always near itself."""
    return _ratio(entry.tokens, min(max(entry.tokens, fewest), work.tokens))


def _ratio(a: float, b: float) -> float:
    """Of the larger to the smaller."""
    return max(a, b) / max(min(a, b), 1e-9)


# ---- in a product --------------------------------------------------------------------------------


@cache
def host_plan() -> HostPlan:
    """The plan of this process, read from the store when it is first asked for."""
    return HostPlan()


def renew() -> None:
    """Forget what this process has read and chosen, for the store lies elsewhere now."""
    host_plan.cache_clear()


def kernel_for(backend: Backend, x: Tensor, granularity: Granularity, shape: tuple[int, int], values: Tensor) -> str:
    """Name of the kernel for a product; empty if the back end is to choose.

    Args:
        backend: the one that serves the weight.
        x: ``[..., in]``, of which only the shape counts.
        granularity: layout of the weight.
        shape: ``(out, in)``.
        values: the packed values, of which the number and the dtype count.
    """
    if torch.compiler.is_compiling():
        return _while_compiling(backend, x, granularity, shape, values)
    host = host_plan()
    if not host.tuned:
        return ""
    stored, tokens = values.numel(), x.numel() // shape[1]
    chosen = host.chosen
    key = (granularity.spec, shape, stored, values.dtype, alike(tokens)[1], native.isa(), backend.name)
    kernel = chosen.get(key)
    if kernel is None:
        request = Request(granularity, shape, values.dtype, values.device.type)
        kernel = host.choose(backend, request, stored, tokens).kernel
        if len(chosen) >= MOST_CHOSEN:
            chosen.clear()
        chosen[key] = kernel
    return kernel


def _while_compiling(
    backend: Backend, x: Tensor, granularity: Granularity, shape: tuple[int, int], values: Tensor
) -> str:
    # An exported program may run on another machine, which need not have the kernel.
    if torch.compiler.is_exporting():
        return ""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    tokens, stored = x.numel() // shape[1], values.numel()
    if not (has_static_value(tokens) and has_static_value(stored)):
        return ""
    return _name_as_constant(backend.name, granularity.spec, shape, values.dtype, values.device.type, stored, tokens)


def _name_as_constant(
    backend: str, spec: str, shape: tuple[int, int], dtype: torch.dtype, device: str, stored: int, tokens: int
) -> str:
    request = Request(parse(spec), shape, dtype, device)
    return host_plan().choose(backend_named(backend), request, stored, tokens).kernel


# As in select.py: plain data goes in and out, which the compiler keeps as a constant.
_name_as_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel_name(request: Request, stored: int, tokens: int) -> str:
    """Name of the kernel that runs, on the back end that serves the request, for reports.

    Args:
        request: the weight.
        stored: number of its stored values, ``packed.values.numel()``.
        tokens: rows of the activation.
    """
    backend = select(request).serving(request, stored, tokens)
    return host_plan().choose(backend, request, stored, tokens).kernel or backend.kernel_name(request, tokens)
