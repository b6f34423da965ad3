"""``python -m sparsekern kernels``: the kernel table."""

from __future__ import annotations

import argparse
import dataclasses
import json

from .. import plan
from .table import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--json", action="store_true", help="print the records as JSON")


def run(args: argparse.Namespace) -> None:
    """Print every kernel record of every back end, most preferred first."""
    records = plan.kernels()
    if args.json:
        print(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
        return
    print_table(
        ("kernel", "granularity", "dtypes", "ISA", "tokens", "here"),
        [(r.name, r.takes, ", ".join(r.dtypes), r.machines, r.tokens, "yes" if r.runs_here else "no") for r in records],
    )
