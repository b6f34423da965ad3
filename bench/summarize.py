"""A results file of bench/linear.py or bench/train.py as tables: python bench/summarize.py results.jsonl

One section for each processor, instruction set, version of torch and commit of the kernels in the
file. First the bars, over all shapes and numbers of tokens: how much of the peak, and how much of what
was skipped is saved time. Then every number of tokens by itself, over the shapes that all of its blocks and
densities were measured with. Of a case that was measured twice the last record counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
IDENTITY = ("cpu", "isa", "torch", "git")


def sections(records: Iterable[Record]) -> dict[tuple[str, ...], list[Record]]:
    """The last record of each case, by what must not be mixed."""
    found: dict[tuple[str, ...], dict[str, Record]] = defaultdict(dict)
    for record in records:
        identity = tuple(record["env"][fact] for fact in IDENTITY)
        found[identity][json.dumps(record["case"], sort_keys=True)] = record
    return {identity: list(cases.values()) for identity, cases in found.items()}


def bars(records: Iterable[Record]) -> list[str]:
    """Markdown lines: share of peak, efficiency and speed-up by block, density and threads; one token apart."""

    def key(case: dict[str, Any]) -> tuple[Any, ...]:
        tokens = "1" if case["tokens"] == 1 else "> 1"
        return case["dtype"], case["granularity"], case["density"], case["threads"], tokens

    return _table("dtype | block | density | threads | tokens", records, key)


def of_common_shapes(records: Iterable[Record]) -> list[Record]:
    """Those of shapes that all blocks and densities have at a dtype, threads and tokens; all, if there are none.

    Otherwise their medians would be over different shapes, and not to be compared.
    """
    settings: dict[tuple[Any, ...], dict[tuple[Any, ...], set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))

    def setting(case: dict[str, Any]) -> tuple[Any, ...]:
        return case["dtype"], case["threads"], case["tokens"]

    records = list(records)
    for case in (record["case"] for record in records):
        settings[setting(case)][case["granularity"], case["density"]].add((case["in"], case["out"]))
    common = {
        key: set.intersection(*shapes.values()) or set.union(*shapes.values()) for key, shapes in settings.items()
    }
    return [r for r in records if (r["case"]["in"], r["case"]["out"]) in common[setting(r["case"])]]


def details(records: Iterable[Record]) -> list[str]:
    """Markdown lines: the same by number of tokens."""
    records = of_common_shapes(records)

    def key(case: dict[str, Any]) -> tuple[Any, ...]:
        return case["dtype"], case["granularity"], case["density"], case["threads"], case["tokens"]

    return _table("dtype | block | density | threads | tokens", records, key)


def training(records: Iterable[Record]) -> list[str]:
    """Markdown lines of ``bench/train.py``: gradients of single layers and whole steps."""

    def key(case: dict[str, Any]) -> tuple[Any, ...]:
        return case["what"], case["granularity"], f"{case['density']:.3g}", case["threads"], case["tokens"]

    return _table("what | block | density | threads | tokens", records, key)


def _table(names: str, records: Iterable[Record], key: Callable[[dict[str, Any]], tuple[Any, ...]]) -> list[str]:
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record["case"])].append(record)
    columns = ("share_of_peak", "efficiency", "speedup")
    heads = [f"{column.replace('_', ' ')}, {kind}" for column in columns for kind in ("median", "least")]
    heads.append("over eager, median")
    lines = [f"| {names} | cases | {' | '.join(heads)} |"]
    lines.append("|---" * (names.count("|") + 2 + len(heads)) + "|")
    for group, cases in groups.items():
        cells = [*map(str, group), str(len(cases))]
        for column in columns:
            values = [case[column] for case in cases if column in case]  # a step has no share of the peak
            cells += [f"{statistics.median(values):.2f}", f"{min(values):.2f}"] if values else ["-", "-"]
        over_eager = [case["speedup_eager"] for case in cases if "speedup_eager" in case]
        cells.append(f"{statistics.median(over_eager):.2f}" if over_eager else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def baselines(records: Iterable[Record]) -> str:
    """What the dense layer was, and whether anything else was tried."""
    *tried, last = sorted({name for record in records for name in record["baseline"]["trials"]})
    return f"dense PyTorch: the fastest of {', '.join(tried)} and {last}" if tried else f"dense PyTorch: {last}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON lines")
    lines = parser.parse_args().results.read_text().splitlines()
    for (cpu, isa, torch, git), records in sections(map(json.loads, lines)).items():
        dates = sorted({record["env"]["date"] for record in records})
        peak = statistics.median(r["peak_gflops"] / r["case"]["threads"] for r in records if "peak_gflops" in r)
        print(f"## {cpu}, {isa}, torch {torch}, kernels of commit {git}\n")
        print(f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {baselines(records)};")
        print(f"multiply-add peak {peak:.0f} GFLOP/s a core. Median and least over the cases.\n")
        steps = [record for record in records if record["suite"] == "train"]
        layers = [record for record in records if record["suite"] != "train"]
        if layers:
            print("\n".join([*bars(layers), "", *details(layers), ""]))
        if steps:
            print("\n".join([*training(steps), ""]))


if __name__ == "__main__":
    main()
