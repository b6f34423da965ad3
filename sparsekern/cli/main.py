"""Reads the command line and hands over to the verb."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import _native
from . import UserError

VERBS = {
    "demo": "prune a real transformer and show what it gains and what it costs",
    "doctor": "what is installed and built here, and how to mend what is not",
    "tune": "measure this machine, so that the fastest kernels are chosen",
    "plan": "which kernel would run a product, and why",
    "inspect": "one layer through every stage: weight, mask, packed layout, plan, and the code that will run",
    "kernels": "the kernel table, and which lines of it run here",
}
"""What each verb is for. ``sparsekern.cli.<verb>`` is imported only when the verb is used."""

USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code of the process."""
    argv = sys.argv[1:] if argv is None else argv
    verb = _module(argv[0]) if argv and argv[0] in VERBS else None
    args = _parser(argv[0] if argv else "", verb).parse_args(argv)
    assert verb is not None  # anything else made the parser exit
    try:
        if args.verb != "doctor":  # which reports it as one of its problems
            _apply_isa_limit()
        code: int | None = verb.run(args)
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        print(f"sparsekern {args.verb}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _apply_isa_limit() -> None:
    try:
        _native.apply_isa_limit()
    except RuntimeError as error:
        raise UserError(str(error)) from error


def _parser(chosen: str, verb: ModuleType | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparsekern", description="Sparse kernels that make pruning pay.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, purpose in VERBS.items():
        child = verbs.add_parser(name, help=purpose, description=purpose)
        if name == chosen and verb is not None:
            verb.add_arguments(child)
    return parser


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{verb}")
