"""``python -m sparsekern plan``: which kernel would run a product on this machine, and why."""

from __future__ import annotations

import argparse
import dataclasses
import json

from .. import plan
from ..layouts import Granularity
from . import UserError
from .arguments import granularity_of, in_by_out
from .table import print_table
from .tune import DTYPES

WHY = {
    "measured": "measured here, for a case that is near",
    "predicted": "predicted to be faster than the first line of the kernel table that fits",
    "table": "the first line of the kernel table that fits",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("granularity", type=granularity_of, help="such as block(16,1), nm(2,4,1) or unstructured()")
    parser.add_argument("shape", type=in_by_out, metavar="INxOUT", help="of the weight")
    parser.add_argument("--tokens", type=int, default=128, help="rows of the activation (default 128)")
    parser.add_argument("--density", type=float, default=0.25, help="share of the weights kept (default 0.25)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", action="store_true", help="print the choice as JSON")


def run(args: argparse.Namespace) -> None:
    """Print the choice, and what the model says about each kernel that could serve the product."""
    request, stored = _request(args)
    backend = plan.select(request).serving(request, stored, args.tokens)
    choice = plan.host_plan().choose(backend, request, stored, args.tokens)
    kernel = choice.kernel or backend.kernel_name(request, args.tokens)
    if args.json:
        entry = choice.entry and dataclasses.asdict(choice.entry)
        costs = {name: dataclasses.asdict(cost) for name, cost in choice.costs.items()}
        print(json.dumps({"kernel": kernel, "why": choice.why, "costs": costs, "entry": entry}, indent=2))
        return
    print(f"{kernel}: {WHY[choice.why]}")
    if choice.costs:
        print("\nPredicted, on one thread:")
        costs_first = sorted(choice.costs.items(), key=lambda item: item[1].seconds)
        rows = [(name, f"{cost.seconds * 1e6:.0f}", cost.bound) for name, cost in costs_first]
        print_table(("kernel", "us", "most of it"), rows)
    elif backend.candidates(request):
        print("The model has no rates of this machine yet: python -m sparsekern tune measures them.")


def _request(args: argparse.Namespace) -> tuple[plan.Request, int]:
    """The request, and how many weights would be stored."""
    granularity: Granularity = args.granularity
    in_features, out_features = args.shape
    if not 0 < args.density <= 1 or args.tokens < 1:
        raise UserError(f"expected a density in (0, 1] and a token or more, got {args.density} and {args.tokens}")
    try:
        granularity.check_shape((out_features, in_features), "the weight")
    except ValueError as error:
        raise UserError(str(error)) from error
    implied = granularity.implied_sparsity
    density = args.density if implied is None else 1 - implied
    request = plan.Request(granularity, (out_features, in_features), DTYPES[args.dtype], "cpu")
    return request, round(density * in_features * out_features)
