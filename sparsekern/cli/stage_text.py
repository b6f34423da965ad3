"""The stages of ``inspect`` as text."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch

from ..inspect import pictures
from ..inspect.stages import CodeStage, LayoutStage, MaskStage, PlanStage, WeightStage
from ..listings import Listing
from .plan import WHY
from .table import print_table


@dataclass(frozen=True)
class Page:
    """Where the text goes.

    Attributes:
        width: columns.
        lines: most lines of a listing; 0 for all.
    """

    width: int
    lines: int

    def text(self, text: str, indent: int = 0) -> None:
        """Print a paragraph."""
        print(textwrap.fill(text, self.width, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)))

    def levels(self, drawn: str, ascii_only: str) -> str:
        """The characters of a picture that the output can hold."""
        try:
            drawn.encode(sys.stdout.encoding or "ascii")
        except UnicodeEncodeError:
            return ascii_only
        return drawn


@singledispatch
def print_stage(stage: Any, page: Page) -> None:
    """Print the facts of a stage, and its picture."""
    raise TypeError(f"expected a stage, got {type(stage).__name__}")


@print_stage.register
def _(stage: WeightStage, page: Page) -> None:
    out, in_ = stage.shape
    print(f"{out} outputs x {in_} inputs, {stage.dtype}, {stage.zeros:.1%} zeros")
    print(f"mean {stage.mean:.3g}, standard deviation {stage.std:.3g}, largest {stage.abs_max:.3g}")
    line = pictures.bars(stage.histogram, page.levels(pictures.BARS, pictures.BARS_ASCII))
    print(f"How many there are, zeros left out:\n\n{-stage.abs_max:>8.3g} |{line}| {stage.abs_max:.3g}")


@print_stage.register
def _(stage: MaskStage, page: Page) -> None:
    page.text(
        f"{stage.label}: {stage.kept_groups} of {stage.groups} groups kept, {stage.density:.1%} of the weights, "
        f"{stage.magnitude:.1%} of their magnitude"
    )
    if stage.kept_in_row is not None:
        least, median, most = stage.kept_in_row
        print(f"{stage.group_rows} rows of groups, which keep {least} to {most} each, {median} in the median")
    levels = page.levels(pictures.SHADES, pictures.SHADES_ASCII)
    lines, meaning = pictures.shades(torch.tensor(stage.map), levels)
    page.text(f"Outputs downwards, inputs to the right; {meaning}:")
    print("\n" + "\n".join(f"    |{line}|" for line in lines))


@print_stage.register
def _(stage: LayoutStage, page: Page) -> None:
    parts = [(part.name, str(list(part.shape)), part.dtype, f"{part.bytes:,}") for part in stage.parts]
    print_table(("tensor", "shape", "dtype", "bytes"), parts)
    share = stage.bytes / stage.dense_bytes
    padding = f"; {stage.padding:,} stored places are padding" if stage.padding else ""
    page.text(f"{stage.bytes:,} bytes, {share:.1%} of the {stage.dense_bytes:,} of the dense weight{padding}")
    print(f"unpack(pack(w, mask)) == w * mask: {'holds' if stage.law else 'BROKEN'}")
    print()
    page.text("Where in the values each weight lies, outputs downwards, inputs to the right:")
    print("\n" + "\n".join(pictures.corner(torch.tensor(stage.order))))


@print_stage.register
def _(stage: PlanStage, page: Page) -> None:
    for name, reason in stage.refusals.items():
        page.text(f"{name}: refuses, {reason}")
    page.text(f"{stage.backend}: serves it" + (f" on {stage.device}" if stage.device != "cpu" else ""))
    page.text(f"kernel for {stage.tokens} tokens: {stage.kernel}, {WHY[stage.why]}")
    if stage.measured:
        case = stage.measured
        page.text(
            f"measured: {case['seconds'] * 1e6:.0f} us with {case['tokens']} tokens, {case['in_features']}x"
            f"{case['out_features']}, density {case['density']:.2g}, {case['threads']} threads"
        )
    if stage.costs:
        print("\nPredicted, on one thread:")
        rows = [(name, f"{seconds:.0f}", bound) for name, (seconds, bound) in stage.costs.items()]
        print_table(("kernel", "us", "most of it"), rows)
    elif len(stage.candidates) > 1:
        page.text(f"could serve it too: {', '.join(name for name in stage.candidates if name != stage.kernel)}")
        page.text("The model has no rates of this machine yet: python -m sparsekern tune measures them.")


@print_stage.register
def _(stage: CodeStage, page: Page) -> None:
    if stage.code is None:
        page.text(f"{stage.unavailable}")
        return
    code = stage.code
    print(f"{code.kernel} for {code.target}, out of {code.source}")
    for note in code.notes:
        page.text(note)
    for listing in code.listings:
        _print_listing(listing, page)


def _print_listing(listing: Listing, page: Page) -> None:
    print(f"\n{listing.title}")
    page.text(", ".join(f"{name} {value}" for name, value in listing.facts.items()), indent=2)
    if listing.mix:
        page.text("mix: " + ", ".join(f"{kind} {count}" for kind, count in listing.mix.items()), indent=2)
    print()
    shown = listing.lines[: page.lines or None]
    for line in shown:
        print(line if len(line) <= page.width else f"{line[: page.width - 3]}...")
    if len(shown) < len(listing.lines):
        print(f"... {len(listing.lines) - len(shown)} more lines (--lines 0 shows all)")
