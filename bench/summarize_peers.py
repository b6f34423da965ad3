"""A results file of bench/peers.py as tables: python bench/summarize_peers.py peers.jsonl

One section for each processor, instruction set, version of torch and commit of the kernels. A ratio is a
peer's time over ours, so above 1 we are faster; median over the shapes, with the least in brackets. The
fastest peer of each kind is found case by case, so the first table compares with the best of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from summarize import Record, sections


def groups(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by some facts of their case, in order of appearance."""
    found: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        found[tuple(record["case"][key] for key in keys)].append(record)
    return found


def fastest(record: Record, kind: str) -> tuple[float, str] | None:
    """Ratio and name of the fastest timed peer of a kind; None if none was timed."""
    timed = {name: peer for name, peer in record["peers"].items() if peer.get("kind") == kind and "ratio" in peer}
    if not timed:
        return None
    name = min(timed, key=lambda name: timed[name]["ratio"]["median"])
    return timed[name]["ratio"]["median"], name


def best(records: Sequence[Record]) -> list[str]:
    """Markdown lines: ours against the fastest dense and the fastest sparse peer of each case."""
    lines = [
        "| pattern | density | cases | ours, GFLOP/s if dense "
        "| over fastest dense | which | over fastest sparse | which |",
        "|---" * 8 + "|",
    ]
    for (granularity, density), cases in groups(records, "granularity", "density").items():
        rate = statistics.median(case["dense_equivalent_gflops"] for case in cases)
        cells = [granularity, f"{density:g}", str(len(cases)), f"{rate:.0f}"]
        for kind in ("dense", "sparse"):
            found = [first for case in cases if (first := fastest(case, kind)) is not None]
            names = Counter(name for _, name in found)
            cells += [_ratios([ratio for ratio, _ in found]), ", ".join(names) or "none"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def each(records: Sequence[Record]) -> list[str]:
    """Markdown lines: ours against every peer that was timed at least once."""
    columns = groups(records, "granularity", "density")
    names = dict.fromkeys(name for record in records for name, peer in record["peers"].items() if "ratio" in peer)
    heads = [f"{granularity}, {density:g}" for granularity, density in columns]
    lines = [f"| peer | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in names:
        peers = [[case["peers"].get(name, {}) for case in cases] for cases in columns.values()]
        cells = [_ratios([peer["ratio"]["median"] for peer in column if "ratio" in peer]) for column in peers]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def remarks(records: Sequence[Record]) -> list[str]:
    """Markdown lines: versions and licences of the peers, and why some were not timed."""
    versions = {name: version for record in records for name, version in record["env"]["peers"].items()}
    licences = {
        name: peer["licence"] for record in records for name, peer in record["peers"].items() if "licence" in peer
    }
    notes = {name: f" ({licence})" for name, licence in licences.items()}
    lines = [f"- {name} {version}{notes.get(name, '')}" for name, version in versions.items()]
    reasons = Counter(
        f"{name}: {state}: {peer[state]}"
        for record in records
        for name, peer in record["peers"].items()
        for state in ("absent", "refused", "error")
        if state in peer
    )
    return lines + [f"- {reason} ({count} of {len(records)} cases)" for reason, count in reasons.items()]


def _ratios(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f})" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON lines")
    lines = parser.parse_args().results.read_text().splitlines()
    for (cpu, isa, torch, git), records in sections(map(json.loads, lines)).items():
        dates = sorted({record["env"]["date"] for record in records})
        print(f"## {cpu}, {isa}, torch {torch}, kernels of commit {git}\n")
        print(f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}. Times of peers over ours.\n")
        for (threads, tokens), cases in groups(records, "threads", "tokens").items():
            print(f"### {tokens} tokens, {threads} {'thread' if threads == 1 else 'threads'}\n")
            print("\n".join([*best(cases), "", *each(cases), ""]))
        print("\n".join(["### Peers", "", *remarks(records), ""]))


if __name__ == "__main__":
    main()
