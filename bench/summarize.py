"""A results file as a table: python bench/summarize.py bench/results/HOST/linear.jsonl

For each block, density, number of tokens and threads: the median and the worst over the shapes.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Key = tuple[str, float, int, int]
COLUMNS = ("share_of_peak", "efficiency", "speedup")


def group(records: list[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """Records by block, nominal density, tokens and threads; the shapes fall together."""
    groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        case = record["case"]
        nominal = min((0.5, 0.25, 0.1), key=lambda d: abs(d - case["density"]))
        groups[case["granularity"], nominal, case["tokens"], case["threads"]].append(record)
    return groups


def table(records: list[dict[str, Any]]) -> list[str]:
    """Markdown lines."""
    lines = [
        "| block | density | tokens | threads | shapes | share of peak | efficiency | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (block, density, tokens, threads), cases in group(records).items():
        cells = []
        for column in COLUMNS:
            values = [case[column] for case in cases]
            cells.append(f"{statistics.median(values):.2f} (worst {min(values):.2f})")
        lines.append(f"| {block} | {density} | {tokens} | {threads} | {len(cases)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    env = records[0]["env"]
    peak = statistics.median(r["peak_gflops"] / r["case"]["threads"] for r in records)
    print(f"{env['cpu']}, {env['isa']}, torch {env['torch']}, commit {env['git']}, {env['date']};")
    print(f"multiply-add peak {peak:.0f} GFLOP/s a core. Median over the shapes, and the worst of them.\n")
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
