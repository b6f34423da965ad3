"""Packed linear layers against dense PyTorch: python bench/linear.py --out results.jsonl

For every case: correctness against float64 first; then our layer and the fastest way there is to have PyTorch
multiply densely (dense.py), interleaved; then ours and eager PyTorch. Ten rounds of all ways before decide which is
the fastest; their times are recorded as "trials". A call is what a user calls, ``layer(x)``: packing of activations,
tails, bias and output layout are all inside. The speed-up is the median of the ratios within a round. Share of peak
is the non-zero FLOP rate over the multiply-add peak of the dtype measured in the same run (of bfloat16 where the CPU
has dot products of them); efficiency is speed-up x density.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from dense import linear_variants
from harness import (
    TRIAL_ROUNDS,
    against_dense,
    against_peak,
    command_line,
    environment,
    fma_peak,
    pair,
    parsed,
    threads,
    write,
)
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import parse
from sparsekern.plan import Request, interleave, kernel_name

SHAPES = ((768, 3072), (3072, 768), (384, 1536), (1536, 384), (4096, 4096))  # (in, out)
BLOCKS = ((16, 1), (32, 1), (16, 16), (32, 32), (64, 64), (4, 1), (8, 1))
GRANULARITIES = (
    *(sk.Block(*sides) for sides in BLOCKS),
    sk.NM(2, 4), sk.NM(4, 8), sk.NM(1, 4), sk.NM(2, 4, 16), sk.NM(1, 4, 16), sk.Unstructured(),
)  # fmt: skip
DENSITIES = (0.5, 0.25, 0.1)
TOKENS = (1, 128, 512)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}
"""Largest error of an output allowed, relative to the largest output: that of summing, or of one rounding."""


def check(layer: sk.SparseLinear, x: Tensor) -> float:
    """Largest error relative to the largest output, against the float64 product."""
    dense = layer.to_dense().double()
    expected = dense(x.double())
    error = (layer(x) - expected).abs().max() / expected.abs().max()
    if not error < MOST_ERROR[x.dtype]:
        raise AssertionError(f"{layer}: relative error {error:.2e} at {x.shape[0]} tokens")
    return float(error)


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    env = environment()
    for count in options.threads:
        with threads(count), torch.inference_mode():
            for tokens in options.tokens:
                for in_features, out_features in options.shapes:
                    yield from shape_cases(options, env, count, tokens, in_features, out_features)


def shape_cases(
    options: argparse.Namespace, env: dict[str, Any], count: int, tokens: int, in_features: int, out_features: int
) -> Iterator[dict[str, Any]]:
    torch.manual_seed(options.seed)
    linear = nn.Linear(in_features, out_features, dtype=options.dtype)
    x = torch.randn(tokens, in_features).to(options.dtype)
    torch._dynamo.reset()
    variants = linear_variants(linear, x, options.compiled)
    expected = linear(x)
    for name, call in variants.items():
        if not (call() - expected).abs().max() < 2 * MOST_ERROR[options.dtype] * expected.abs().max():
            raise AssertionError(f"dense {name}: other outputs than eager ones, {in_features}->{out_features}")
    trial = interleave(variants, TRIAL_ROUNDS)
    for granularity in options.granularities:
        implied = granularity.implied_sparsity
        for density in options.densities if implied is None else (1 - implied,):
            layer = sk.SparseLinear.from_dense(linear, granularity, sparsity=1 - density)
            error = check(layer, x)
            peak = fma_peak(count, 0.05, options.dtype)
            record = against_dense(partial(layer, x), variants, trial, options.rounds, layer.packed.density)
            request = Request(layer.granularity, (out_features, in_features), options.dtype, "cpu")
            yield {
                "suite": "linear",
                "case": {
                    "in": in_features,
                    "out": out_features,
                    "tokens": tokens,
                    "threads": count,
                    "dtype": str(options.dtype).removeprefix("torch."),
                    "granularity": granularity.label,
                    "density": density,
                    "kernel": kernel_name(request, layer.packed.values.numel(), tokens),
                },
                **record,
                **against_peak(record, in_features * out_features, tokens, peak),
                "gbs": layer.packed.nbytes / record["t"]["median"] * 1e-9,
                "error": error,
                "env": env,
                "seed": options.seed,
            }


def line(record: dict[str, Any]) -> str:
    case = record["case"]
    return (
        f"{case['dtype']} {case['threads']}t M={case['tokens']:<4d} {case['in']:>5d}->{case['out']:<5d} "
        f"{case['granularity']:>12s} d={case['density']:<5.3g} "
        f"dense {record['baseline']['median'] * 1e6:8.0f} us ({record['baseline']['name']:8s}) "
        f"sparse {record['t']['median'] * 1e6:8.1f} us  {record['speedup']:6.2f}x "
        f"({record['speedup_eager']:.2f}x eager)  eff {record['efficiency']:.2f}  "
        f"peak share {record['share_of_peak']:.2f}"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--shapes", type=pair, nargs="+", default=SHAPES, help="INxOUT")
    parser.add_argument(
        "--granularities", type=parse, nargs="+", default=GRANULARITIES, help="such as block(16,1) or nm(2,4,1)"
    )
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager-only", dest="compiled", action="store_false", help="only eager dense PyTorch")
    options = parsed(parser)
    options.dtype = DTYPES[options.dtype]
    write(cases(options), line, options.out)


if __name__ == "__main__":
    main()
