"""Packed convolutions against dense PyTorch: python bench/conv.py --out results.jsonl

The convolutions of ResNet-50, BatchNorm folded in. For every case: correctness against float64 first; then our layer
and the fastest way there is to have PyTorch convolve densely (dense.py: eager, and by oneDNN with a weight laid out for
it; contiguous and channels-last), interleaved; then ours and eager PyTorch. A call is what a user calls, ``layer(x)``,
and its output has the memory format of its input: both are measured, each against the same baseline, which is the
fastest in either. Speed-up, share of peak and efficiency are those of bench/linear.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from dense import conv_variants
from harness import (
    TRIAL_ROUNDS,
    against_dense,
    against_peak,
    command_line,
    environment,
    fma_peak,
    parsed,
    threads,
    write,
)
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import parse
from sparsekern.plan import interleave


class Shape(NamedTuple):
    """A convolution of square images with padding that keeps their size, but for the stride."""

    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """From the command line, such as ``64x256x56x1x1``."""
        return cls(*map(int, text.split("x")))


SHAPES = (
    Shape(64, 256, 56, 1, 1), Shape(256, 64, 56, 1, 1), Shape(128, 512, 28, 1, 1), Shape(512, 128, 28, 1, 1),
    Shape(256, 1024, 14, 1, 1), Shape(1024, 256, 14, 1, 1), Shape(512, 2048, 7, 1, 1), Shape(2048, 512, 7, 1, 1),
    Shape(64, 64, 56, 3, 1), Shape(128, 128, 28, 3, 1), Shape(256, 256, 14, 3, 1), Shape(512, 512, 7, 3, 1),
    Shape(128, 128, 56, 3, 2), Shape(256, 256, 28, 3, 2), Shape(512, 512, 14, 3, 2),
)  # fmt: skip
GRANULARITIES = (sk.Block(16, 1), sk.Block(16, 16), sk.NM(2, 4))
DENSITIES = (0.5, 0.3, 0.2, 0.1)
BATCHES = (1, 8)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MOST_ERROR = 1e-5
"""Largest error of an output allowed, relative to the largest output."""


def check(layer: sk.SparseConv2d, x: Tensor) -> float:
    """Largest error relative to the largest output, against the float64 convolution."""
    expected = layer.to_dense().double()(x.double())
    error = (layer(x) - expected).abs().max() / expected.abs().max()
    if not error < MOST_ERROR:
        raise AssertionError(f"{layer}: relative error {error:.2e} for images {list(x.shape)}")
    return float(error)


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    env = environment()
    for count in options.threads:
        with threads(count), torch.inference_mode():
            for batch in options.batches:
                for shape in options.shapes:
                    yield from shape_cases(options, env, count, batch, shape)


def shape_cases(
    options: argparse.Namespace, env: dict[str, Any], count: int, batch: int, shape: Shape
) -> Iterator[dict[str, Any]]:
    torch.manual_seed(options.seed)
    conv = nn.Conv2d(shape.inputs, shape.outputs, shape.kernel, shape.stride, shape.kernel // 2)
    x = torch.randn(batch, shape.inputs, shape.size, shape.size)
    torch._dynamo.reset()
    variants = conv_variants(conv, x, options.compiled)
    expected = conv(x)
    for name, call in variants.items():
        if not (call() - expected).abs().max() < 2 * MOST_ERROR * expected.abs().max():
            raise AssertionError(f"dense {name}: other outputs than eager ones, {shape}")
    pixels, weights = batch * expected.shape[2] * expected.shape[3], conv.weight.numel()
    trial = interleave(variants, TRIAL_ROUNDS)
    for granularity in options.granularities:
        implied = granularity.implied_sparsity
        for density in options.densities if implied is None else (1 - implied,):
            layer = sk.SparseConv2d.from_dense(conv, granularity, sparsity=1 - density)
            for form in options.formats:
                image = x.contiguous(memory_format=FORMATS[form])
                error = check(layer, image)
                peak = fma_peak(count, 0.05)
                record = against_dense(partial(layer, image), variants, trial, options.rounds, layer.packed.density)
                yield {
                    "suite": "conv",
                    "case": {
                        **shape._asdict(),
                        "batch": batch,
                        "format": form,
                        "threads": count,
                        "dtype": "float32",
                        "granularity": granularity.label,
                        "density": density,
                    },
                    **record,
                    **against_peak(record, weights, pixels, peak),
                    "error": error,
                    "env": env,
                    "seed": options.seed,
                }


def line(record: dict[str, Any]) -> str:
    case = record["case"]
    shape = f"{case['inputs']}->{case['outputs']} {case['kernel']}x{case['kernel']}/{case['stride']} @{case['size']}"
    return (
        f"{case['threads']}t batch {case['batch']} {shape:>24s} {case['format'][:8]:8s} "
        f"{case['granularity']:>6s} d={case['density']:<4.2g} "
        f"dense {record['baseline']['median'] * 1e6:8.0f} us ({record['baseline']['name']:20s}) "
        f"sparse {record['t']['median'] * 1e6:8.1f} us  {record['speedup']:6.2f}x "
        f"({record['speedup_eager']:.2f}x eager)  eff {record['efficiency']:.2f}  "
        f"peak share {record['share_of_peak']:.2f}"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--shapes", type=Shape.of, nargs="+", default=SHAPES, help="INxOUTxSIZExKERNELxSTRIDE")
    parser.add_argument(
        "--granularities", type=parse, nargs="+", default=GRANULARITIES, help="such as block(16,1) or nm(2,4,1)"
    )
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=list(FORMATS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiled", action="store_true", help="torch.compile among the dense ways, which takes long")
    write(cases(options := parsed(parser)), line, options.out)


if __name__ == "__main__":
    main()
