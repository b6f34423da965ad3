"""A results file of bench/conv.py or bench/mobilenet.py as tables: python bench/summarize_conv.py results.jsonl

One section for each processor, instruction set, version of torch and commit of the kernels in the file. Of every shape
the faster memory format of ours counts, as it does of dense PyTorch; of a case that was measured twice the last record.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from summarize import sections

Record = dict[str, Any]
HEAD = (
    "| granularity | density | kernel | threads | batch | shapes | speed-up: median | least | efficiency: median "
    "| least | share of peak: median | least | over eager: median | contiguous: median | channels-last: median |"
)


def kind_of(case: dict[str, Any]) -> str:
    """Shapes that have a bar together."""
    name = f"{case['kernel']}x{case['kernel']}"
    if case["kernel"] == 1 and case["size"] <= 7:
        return f"{name} at {case['size']} x {case['size']}"
    return name if case["stride"] == 1 else f"{name}, stride {case['stride']}"


def best_formats(records: Iterable[Record]) -> list[dict[str, Record]]:
    """The records of each case by memory format, the faster one once more as ``best``."""
    found: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        case = {key: value for key, value in record["case"].items() if key != "format"}
        found[json.dumps(case, sort_keys=True)][record["case"]["format"]] = record
    for formats in found.values():
        formats["best"] = min(formats.values(), key=lambda record: record["t"]["median"])
    return list(found.values())


def table(records: Iterable[Record]) -> list[str]:
    """Markdown lines: speed-up, efficiency and share of peak by granularity, density and kind of shape."""
    rows: dict[tuple[Any, ...], list[dict[str, Record]]] = defaultdict(list)
    for formats in best_formats(records):
        case = formats["best"]["case"]
        rows[case["granularity"], case["density"], kind_of(case), case["threads"], case["batch"]].append(formats)
    lines = [HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
    for key in sorted(rows, key=lambda key: (key[0], -key[1], *key[2:])):
        best = [formats["best"] for formats in rows[key]]
        cells = [*map(str, key), str(len(best))]
        for name in ("speedup", "efficiency", "share_of_peak"):
            cells += [f"{pick(record[name] for record in best):.2f}" for pick in (statistics.median, min)]
        cells.append(f"{statistics.median(record['speedup_eager'] for record in best):.2f}")
        for form in ("contiguous", "channels_last"):
            of_form = [formats[form]["speedup"] for formats in rows[key] if form in formats]
            cells.append(f"{statistics.median(of_form):.2f}" if of_form else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def network_table(records: Iterable[Record]) -> list[str]:
    """Markdown lines: whole networks."""
    head = (
        "| model | granularity | density | threads | batch | speed-up | ms dense | ms sparse | MiB dense | MiB sparse "
        "| top-1 dense | top-1 least squares | top-1 magnitude | logit error | KL |"
    )
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    for record in records:
        case, quality, peaks = record["case"], record["quality"], record["peak_bytes"]
        squares = quality["least squares"]
        cells = [
            *(str(case[key]) for key in ("model", "granularity", "density", "threads", "batch")),
            f"{record['speedup']:.2f}",
            *(f"{record[which]['median'] * 1e3:.1f}" for which in ("baseline", "t")),
            *(f"{peaks[name] / 2**20:.0f}" for name in (record["baseline"]["name"], record["variant"])),
            *(f"{quality[way]['top1']:.2f}" for way in ("dense", "least squares", "magnitude")),
            f"{squares['logit_error']:.2f}",
            f"{squares['kl']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    records = [json.loads(line) for line in options.results.read_text().splitlines()]
    for (cpu, isa, torch, commit), found in sections(records).items():
        print(f"## {cpu}, {isa}, torch {torch}, kernels of {commit}\n")
        layers = [record for record in found if record["suite"] == "conv"]
        networks = [record for record in found if record["suite"] == "mobilenet"]
        for lines in (layers and table(layers), networks and network_table(networks)):
            if lines:
                print("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
