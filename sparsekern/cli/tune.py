"""``python -m sparsekern tune``: measure this host, so that the plan knows which kernel is the fastest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from .. import plan
from .._native import failure, native
from ..layouts import NM, Block, Unstructured
from ..plan.tune import PASSES, Case, measure_host, time_cases
from . import UserError, progress
from .arguments import granularity_of, in_by_out
from .table import print_table

SHAPES = ((768, 3072),)
GRANULARITIES = (Block(4, 1), Block(8, 1), Block(16, 1), Block(32, 1), Block(16, 16), Unstructured(), NM(2, 4))
DENSITIES = (0.5, 0.1)
TOKENS = (1, 8, 12, 16, 24, 64, 128, 512)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--shapes", type=in_by_out, nargs="+", default=SHAPES, metavar="INxOUT", help="of the weights")
    parser.add_argument(
        "--granularities",
        type=granularity_of,
        nargs="+",
        default=GRANULARITIES,
        help="such as block(16,1) or nm(2,4,1)",
    )
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES, help="shares of the weights kept")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="rows of the activation")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--reset", action="store_true", help="forget what was measured on this host, and do no more")
    parser.add_argument("--json", action="store_true", help="print the records as JSON")


def run(args: argparse.Namespace) -> None:
    """Measure and keep the host's rates, then the fastest kernel of each case; print both."""
    if native is None:
        raise UserError(f"there are no native kernels to choose from ({failure}); doctor says how to build them")
    host = plan.host_plan()
    if args.reset:
        for isa in native.isa_supported():
            host.store.forget(plan.host_key(isa))
        host.refresh()
        print(host.store.trouble or f"Forgot this host: {host.store.path}")
        return
    cases = _cases(args)
    with progress.step("Rates of this core", 1):
        rates = measure_host(host)
    entries: dict[Any, plan.Entry] = {}
    try:
        with progress.step(f"{len(cases)} cases, {PASSES} passes", PASSES * len(cases)) as advance:
            for entry in time_cases(host, rates, cases, DTYPES[args.dtype], advance):
                entries[entry.granularity, entry.density, entry.out_features, entry.in_features, entry.tokens] = entry
    finally:
        # Also after Ctrl-C: what was measured is kept, and shown.
        _print(host.store, rates, list(entries.values()), args.json)


def _cases(args: argparse.Namespace) -> list[Case]:
    wrong = [f"--densities: {d}" for d in args.densities if not 0 < d <= 1]
    wrong += [f"--tokens: {t}" for t in args.tokens if t < 1]
    cases = []
    for in_features, out_features in args.shapes:
        for granularity in args.granularities:
            try:
                granularity.check_shape((out_features, in_features), f"--shapes: {in_features}x{out_features}")
            except ValueError as error:
                wrong.append(str(error))
            implied = granularity.implied_sparsity is not None
            for density in (None,) if implied else args.densities:
                cases += [Case(granularity, density, out_features, in_features, tokens) for tokens in args.tokens]
    if wrong:
        raise UserError(f"expected densities in (0, 1], one token or more and shapes that fit, got {'; '.join(wrong)}")
    return cases


def _print(store: plan.Store, rates: plan.Rates, entries: Sequence[plan.Entry], as_json: bool) -> None:
    summary = summarize(entries)
    if as_json:
        record = {
            "host": plan.host_key(native.isa()),
            "store": str(store.path),
            "trouble": store.trouble,
            "rates": rates.record(),
            "entries": [dataclasses.asdict(entry) for entry in entries],
            "summary": summary,
        }
        print(json.dumps(record, indent=2))
        return
    print_table(
        ("granularity", "density", "in", "out", "tokens", "first line", "chosen", "us", "gain", "model"),
        [
            (
                entry.granularity,
                f"{entry.density:.2g}",
                str(entry.in_features),
                str(entry.out_features),
                str(entry.tokens),
                entry.first,
                entry.kernel if entry.kernel != entry.first else "the same",
                f"{entry.seconds * 1e6:.0f}",
                f"{entry.first_seconds / entry.seconds:.2f}x",
                f"{entry.predicted / entry.seconds - 1:+.0%}" if entry.predicted else "-",
            )
            for entry in entries
        ],
    )
    if entries:
        print(
            f"\nOf {summary['cases']} cases {summary['changed']} have a faster kernel than the first line: "
            f"{summary['gain']:.2f}x there, {summary['gain_overall']:.3f}x overall (geometric means)."
        )
    if any(entry.predicted for entry in entries):
        print(f"The model is {summary['model_error']:.0%} off in the median, where it knows the kernel.")
    print(store.trouble or f"Kept in {store.path}")


def summarize(entries: Sequence[plan.Entry]) -> dict[str, float]:
    """How often another kernel than the first line was chosen, what that gains, and how far off the model is."""
    gains = [entry.first_seconds / entry.seconds for entry in entries if entry.kernel != entry.first]
    return {
        "cases": len(entries),
        "changed": len(gains),
        "gain": _geometric_mean(gains),
        "gain_overall": _geometric_mean([*gains, *[1.0] * (len(entries) - len(gains))]),
        "model_error": statistics.median([abs(e.predicted / e.seconds - 1) for e in entries if e.predicted] or [0.0]),
    }


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values))) if values else 1.0
