"""``python -m sparsekern inspect``: one layer through every stage, as a compiler prints its program after each pass."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..inspect import stages
from ..inspect.subject import Subject, at_random, from_file
from ..layouts import Block
from . import UserError
from .arguments import granularity_of, in_by_out
from .stage_text import Page, print_stage
from .tune import DTYPES

STAGES = ("weight", "mask", "layout", "plan", "code")
GRANULARITY = Block(16, 1)
SEED = 0
LINES = 40
WIDEST = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("layer_or_file", metavar="LAYER_OR_FILE", help="INxOUT such as 768x3072, or a file of sk.save")
    parser.add_argument("--layer", metavar="NAME", help="of a file: which sparse layer (default: the first)")
    parser.add_argument("--granularity", type=granularity_of, help="of a shape: such as 16x1 (default) or 2:4")
    parser.add_argument("--density", type=float, help="of a shape: share of the weights kept (default 0.25)")
    # Those of GPUs' kernels too.
    parser.add_argument("--dtype", choices=[*DTYPES, "float16"], help="of a shape (default float32)")
    parser.add_argument("--seed", type=int, help="of a shape: its weights are random numbers (default 0)")
    parser.add_argument("--tokens", type=int, default=128, help="rows of the activation (default 128)")
    parser.add_argument("--target", metavar="ARCH", help="code for a GPU, such as sm_90, which need not be here")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be given several times")
    parser.add_argument("--lines", type=int, default=LINES, help=f"most lines of a listing (default {LINES}; 0: all)")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the stages; 1 if the packed form is not the masked weight or code cannot be read, else 0."""
    _check(args)
    subject = _subject(args)
    facts: dict[str, Any] = {}
    for stage in STAGES:
        if args.stage is None or stage in args.stage:
            facts[stage] = _facts(stage, subject, args)
    if args.json:
        plain = {name: dataclasses.asdict(stage) for name, stage in facts.items()}
        print(json.dumps({"layer": subject.name, "origin": subject.origin, **plain}, indent=2))
    else:
        _print(subject, facts, args.lines)
    broken = "layout" in facts and not facts["layout"].law
    missing = "code" in facts and facts["code"].expected and facts["code"].code is None
    return 1 if broken or missing else 0


def _check(args: argparse.Namespace) -> None:
    if args.density is not None and not 0 < args.density <= 1:
        raise UserError(f"--density: expected a share in (0, 1], got {args.density}")
    if args.tokens < 1:
        raise UserError(f"--tokens: expected a token or more, got {args.tokens}")
    if args.lines < 0:
        raise UserError(f"--lines: expected a number of lines, or 0 for all, got {args.lines}")
    if args.target is not None and not re.fullmatch(r"sm_\d+[af]?", args.target):
        raise UserError(f"--target: expected an architecture such as sm_80 or sm_90a, got {args.target!r}")


def _subject(args: argparse.Namespace) -> Subject:
    given = args.layer_or_file
    of_shape = ("granularity", "density", "dtype", "seed")
    try:
        if Path(given).exists():
            if named := [f"--{name}" for name in of_shape if getattr(args, name) is not None]:
                raise UserError(f"{', '.join(named)}: a file says that itself; expected INxOUT with it, got {given}")
            return from_file(given, args.layer)
        in_features, out_features = in_by_out(given)
    except argparse.ArgumentTypeError:
        raise UserError(
            f"expected a file of sk.save, or INxOUT such as 768x3072, got {given!r}: there is no such file"
        ) from None
    except OSError as error:
        raise UserError(f"{given}: {error.strerror}") from error
    except (ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    if args.layer is not None:
        raise UserError(f"--layer: expected a file with it, got {given}, which is a single layer")
    try:
        return at_random(
            (out_features, in_features),
            args.granularity or GRANULARITY,
            args.density,
            getattr(torch, args.dtype or "float32"),
            SEED if args.seed is None else args.seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _facts(stage: str, subject: Subject, args: argparse.Namespace) -> Any:
    if stage == "plan":
        return stages.plan_stage(subject, args.tokens, args.target)
    if stage == "code":
        return stages.code_stage(subject, args.tokens, args.target)
    return {"weight": stages.weight_stage, "mask": stages.mask_stage, "layout": stages.layout_stage}[stage](subject)


def _print(subject: Subject, facts: Mapping[str, Any], lines: int) -> None:
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    page = Page(width, lines)
    page.text(f"{subject.name} ({subject.packed.granularity.label}) of {subject.origin}")
    for name, stage in facts.items():
        print(f"\n-- {name} {'-' * (width - len(name) - 4)}")
        print_stage(stage, page)
