"""Whole MobileNetV2, sparse against dense PyTorch: python bench/mobilenet.py --out results.jsonl

Real ImageNet weights (mobilenet_v2.py says which packages have them); BatchNorm is folded into all convolutions, of the
dense network too, and all 1x1 convolutions are pruned at once by least squares. They are calibrated on the CIFAR images
in foolbox, and judged by its ImageNet images, which they never saw: top-1 of 20, where one image is 5 points, and how
far the logits are from those of the dense network. Dense and sparse run eagerly, in both memory formats; the speed-up
is that of the faster sparse one over the faster dense one, interleaved. Peak memory is what one call allocates at most
besides the model and its input, as the profiler of PyTorch counts it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import command_line, environment, parsed, threads, write
from mobilenet_v2 import SIZE, MobileNetV2, images, pretrained
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import parse
from sparsekern.plan import interleave

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def is_pointwise(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def folded(model: MobileNetV2) -> nn.Module:
    """The network with BatchNorm in its convolutions, all dense."""
    dense = copy.deepcopy(model)
    sk.sparsify_(dense, {"*": None}, fold_batch_norm=True)
    return dense


def pruned(model: MobileNetV2, config: sk.Sparse, calibration: Tensor) -> tuple[nn.Module, int]:
    """The network with sparse 1x1 convolutions, and how many there are."""
    sparse = copy.deepcopy(model)
    batches = list(calibration.split(10))
    report = sk.sparsify_(sparse, config, is_pointwise, calibration=batches, fold_batch_norm=True)
    return sparse, report.sparse_layers


def quality(sparse: nn.Module, dense: nn.Module) -> dict[str, float]:
    """Top-1 of both, and the error of the logits: relative to their norm, and as divergence of the classes."""
    pixels, classes = images()
    expected, found = dense(pixels), sparse(pixels)
    divergence = nn.functional.kl_div(
        found.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True
    )
    return {
        "images": len(classes),
        "top1_dense": float((expected.argmax(1) == classes).float().mean()),
        "top1": float((found.argmax(1) == classes).float().mean()),
        "logit_error": float((found - expected).norm() / expected.norm()),
        "kl": float(divergence),
    }


def peak_bytes(model: nn.Module, x: Tensor) -> int:
    """The most memory that a call holds at once."""
    with torch.profiler.profile(profile_memory=True) as profile:
        model(x)
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    env, model = environment(), pretrained()
    calibration = torch.cat([images(kind)[0] for kind in ("cifar10", "cifar100")])
    dense = folded(model)
    for granularity in options.granularities:
        implied = granularity.implied_sparsity
        for density in options.densities if implied is None else (1 - implied,):
            config = sk.Sparse(granularity, None if implied is not None else 1 - density)
            sparse, layers = pruned(model, config, calibration)
            with torch.inference_mode():
                found = quality(sparse, dense)
                for count in options.threads:
                    for batch in options.batches:
                        with threads(count):
                            measured = measure(options, dense, sparse, batch)
                        case = {
                            "model": "MobileNetV2", "batch": batch, "threads": count, "dtype": "float32",
                            "granularity": granularity.label, "density": density, "layers": layers,
                        }  # fmt: skip
                        yield {"suite": "mobilenet", "case": case, **measured, "quality": found, "env": env}


def measure(options: argparse.Namespace, dense: nn.Module, sparse: nn.Module, batch: int) -> dict[str, Any]:
    x, calls, peaks = torch.randn(batch, 3, SIZE, SIZE), {}, {}
    for form in FORMATS:
        image = x.contiguous(memory_format=FORMATS[form])
        for kind, model in (("dense", dense), ("sparse", sparse)):
            own = copy.deepcopy(model).to(memory_format=FORMATS[form])
            calls[f"{kind} {form}"] = partial(own, image)
            peaks[f"{kind} {form}"] = peak_bytes(own, image)
    times = interleave(calls, options.rounds)
    best = {
        kind: min((name for name in times if name.startswith(kind)), key=lambda name: times[name].median)
        for kind in ("dense", "sparse")
    }
    ratio = times[best["dense"]].over(times[best["sparse"]])
    return {
        "t": times[best["sparse"]].record(),
        "variant": best["sparse"],
        "baseline": {"name": best["dense"], **times[best["dense"]].record()},
        "ratio": ratio.record(),
        "speedup": ratio.median,
        "variants": {name: sample.record() for name, sample in times.items()},
        "peak_bytes": peaks,
    }


def line(record: dict[str, Any]) -> str:
    case, found = record["case"], record["quality"]
    medians = ", ".join(f"{name} {sample['median'] * 1e3:.1f}" for name, sample in record["variants"].items())
    peaks = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in record["peak_bytes"].items())
    return (
        f"{case['threads']}t batch {case['batch']} {case['granularity']:>6s} d={case['density']:<5.3g} "
        f"{record['speedup']:.2f}x  top-1 {found['top1']:.2f} (dense {found['top1_dense']:.2f}), "
        f"logits {found['logit_error']:.2f}, KL {found['kl']:.2f}  ms: {medians}  peak MiB: {peaks}"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--granularities", type=parse, nargs="+", default=[sk.Block(16, 1)])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25])
    options = parsed(parser)
    try:
        write(cases(options), line, options.out)
    except ModuleNotFoundError as missing:
        parser.error(str(missing))


if __name__ == "__main__":
    main()
