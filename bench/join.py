"""Three layers of one input against the same ones joined: python bench/join.py --out results.jsonl

The query, key and value of an attention: ``sk.join`` of three layers beside the three called one after the other, and
dense PyTorch beside them, as three layers and as one of all their outputs; all interleaved. Outputs are compared
first. "over" says how many times as fast the joined layer is: the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import command_line, environment, pair, parsed, threads, write
from linear import DTYPES, MOST_ERROR
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import parse
from sparsekern.plan import interleave

GRANULARITIES = (sk.Block(16, 1), sk.Block(16, 16), sk.NM(2, 4), sk.Unstructured())


def calls(x: Tensor, apart: list[sk.SparseLinear], dense: list[nn.Linear]) -> dict[str, Callable[[], object]]:
    """What is compared. The joined dense layer has weights of its own: times do not depend on them."""
    joined = sk.join(apart)
    whole = nn.Linear(x.shape[-1], sum(layer.out_features for layer in dense)).to(x.dtype)
    for ours, layer in zip(joined(x), apart, strict=True):
        error = float((ours - layer(x)).abs().max() / ours.abs().max())
        if not error <= MOST_ERROR[x.dtype]:
            raise AssertionError(f"{layer}: joined outputs differ by {error:.2e}")
    return {
        "apart": lambda: [layer(x) for layer in apart],
        "joined": lambda: joined(x),
        "dense apart": lambda: [layer(x) for layer in dense],
        "dense as one": lambda: whole(x),
    }


def shape_cases(options: argparse.Namespace, in_features: int, out_features: int) -> Iterator[dict[str, Any]]:
    """One record for each granularity and density."""
    dtype = DTYPES[options.dtype]
    torch.manual_seed(options.seed)
    x = torch.randn(options.tokens, in_features).to(dtype)
    dense = [nn.Linear(in_features, out_features).to(dtype) for _ in range(3)]
    for granularity in options.granularities:
        implied = granularity.implied_sparsity
        for sparsity in [1 - d for d in options.densities] if implied is None else [None]:
            apart = [sk.SparseLinear.from_dense(layer, granularity, sparsity) for layer in dense]
            with torch.inference_mode():
                times = interleave(calls(x, apart, dense), options.rounds)
            over = {name: sample.over(times["joined"]).record() for name, sample in times.items() if name != "joined"}
            case = {"in": in_features, "out": out_features, "tokens": options.tokens, "granularity": granularity.label}
            yield {
                "case": {**case, "dtype": options.dtype, "density": round(apart[0].packed.density, 2)},
                "t": {name: sample.record() for name, sample in times.items()},
                "over": over,
            }


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All records."""
    facts = environment()
    for count in options.threads:
        with threads(count):
            for sides in options.shapes:
                for record in shape_cases(options, *sides):
                    record["case"]["threads"] = count
                    yield {"suite": "join", **record, "env": facts}


def line(record: dict[str, Any]) -> str:
    """One case for people."""
    case = record["case"]
    over = {name: f"{ratio['median']:.2f}x" for name, ratio in record["over"].items()}
    return (
        f"{case['dtype']} {case['threads']}t M={case['tokens']} {case['in']}->3x{case['out']} "
        f"{case['granularity']:>12} d={case['density']:<4}  {1e6 * record['t']['joined']['median']:6.0f} us, "
        f"{over['apart']} the three apart, {over['dense apart']} dense apart, {over['dense as one']} dense as one"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--shapes", type=pair, nargs="+", default=[(768, 768), (384, 384)], help="INxOUT of each layer")
    parser.add_argument("--granularities", type=parse, nargs="+", default=GRANULARITIES, help="such as block(16,1)")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parsed(parser)
    write(cases(options), line, options.out)


if __name__ == "__main__":
    main()
