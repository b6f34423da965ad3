"""Types of arguments: what argparse says of a wrong one is what was expected."""

from __future__ import annotations

import argparse
import re

from ..layouts import Granularity, parse

LABELS = {
    r"(\d+)x(\d+)": r"block(\1,\2)",
    r"(\d+):(\d+)": r"nm(\1,\2,1)",
    r"(\d+):(\d+)x(\d+)": r"nm(\1,\2,\3)",
    r"([a-z_]+)": r"\1()",
}
"""Short names of granularities, as reports print them, and what they mean: a shell takes them without quotes."""


def granularity_of(text: str) -> Granularity:
    """A granularity, such as ``block(16,1)``, or by its label, such as ``16x1``.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    spec = next((found.expand(to) for label, to in LABELS.items() if (found := re.fullmatch(label, text))), text)
    try:
        return parse(spec)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, such as block(16,1)") from None


def in_by_out(text: str) -> tuple[int, int]:
    """Inputs and outputs of a weight, such as ``768x3072``.

    Raises:
        argparse.ArgumentTypeError: it is not two positive numbers.
    """
    sides = re.fullmatch(r"0*([1-9][0-9]*)x0*([1-9][0-9]*)", text)
    if sides is None:
        raise argparse.ArgumentTypeError(f"expected INxOUT such as 768x3072, got {text!r}")
    return int(sides[1]), int(sides[2])
