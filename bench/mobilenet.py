"""Whole MobileNetV2, sparse against dense PyTorch: python bench/mobilenet.py --out results.jsonl

Real ImageNet weights (mobilenet_v2.py says which packages have them); BatchNorm is folded into all convolutions, of the
dense network too, and all 1x1 convolutions are pruned at once, by least squares or by magnitude, and compute the ReLU6
behind them. Judged by 20 ImageNet images, which no pruning saw that is judged by them: half of them, mirrored too,
calibrate the network that the other half is shown to. Top-1 is of 20, so one image is 5 points; beside it stands how
far the logits are from the dense ones.

Dense and sparse run eagerly, in both memory formats; the speed-up is that of the faster sparse one over the faster
dense one, interleaved. Peak memory is that of the weights, and by how much a new process grows at most in its first
calls.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
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


def pruned(model: MobileNetV2, config: sk.Sparse, calibration: Tensor | None = None) -> tuple[nn.Module, int]:
    """The network with sparse 1x1 convolutions, and how many there are; by magnitude without images to calibrate."""
    sparse = copy.deepcopy(model)
    batches = None if calibration is None else list(torch.cat([calibration, calibration.flip(3)]).split(10))
    report = sk.sparsify_(
        sparse, config, is_pointwise, calibration=batches, fold_batch_norm=True, fuse_activations=True
    )
    return sparse, report.sparse_layers


def quality(model: MobileNetV2, config: sk.Sparse, dense: nn.Module) -> dict[str, dict[str, float]]:
    """Of pruning by least squares and by magnitude: top-1, and the error of the logits.

    The latter relative to the norm of the dense ones, and as divergence of the classes.
    """
    pixels, classes = images()
    by_magnitude, _ = pruned(model, config)
    found = {"magnitude": torch.empty(len(classes), 1000), "least squares": torch.empty(len(classes), 1000)}
    for half in (torch.arange(0, len(classes), 2), torch.arange(1, len(classes), 2)):
        others = torch.ones(len(classes), dtype=torch.bool).index_fill(0, half, False)
        by_squares, _ = pruned(model, config, pixels[others])
        with torch.inference_mode():
            found["least squares"][half] = by_squares(pixels[half])
            found["magnitude"][half] = by_magnitude(pixels[half])
    with torch.inference_mode():
        expected = dense(pixels)
    return {"dense": judged(expected, expected, classes)} | {
        way: judged(logits, expected, classes) for way, logits in found.items()
    }


def judged(logits: Tensor, expected: Tensor, classes: Tensor) -> dict[str, float]:
    """Of logits, beside those of the dense network."""
    divergence = nn.functional.kl_div(
        logits.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True
    )
    return {
        "images": len(classes),
        "top1": float((logits.argmax(1) == classes).float().mean()),
        "logit_error": float((logits - expected).norm() / expected.norm()),
        "kl": float(divergence),
    }


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all Parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def growth(model: nn.Module, x: Tensor) -> int:
    """Bytes by which a new process grows at most in the first calls, whoever allocates them; Linux only.

    Large tensors are mapped and unmapped one by one. Else the C library keeps freed ones, and whether they serve later
    ones is a matter of luck that differs by 30 MiB between runs of one network.
    """
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save((model, x), file.name)
        arguments = [file.name, str(torch.get_num_threads())]
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},
        )
    return int(done.stdout)


GROWTH = """
import re, sys, torch, sparsekern, mobilenet_v2
model, x = torch.load(sys.argv[1], weights_only=False)
torch.set_num_threads(int(sys.argv[2]))
status = lambda name: int(re.search(rf"{name}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
with torch.inference_mode():
    torch.nn.Conv2d(3, 16, 1)(x), torch.nn.Linear(8, 8)(x[0, 0, :, :8])  # what libraries need to start
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    for _ in range(3):
        model(x)
print(status("VmHWM") - before)
"""


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    env, model = environment(), pretrained()
    dense = folded(model)
    for granularity in options.granularities:
        implied = granularity.implied_sparsity
        for density in options.densities if implied is None else (1 - implied,):
            config = sk.Sparse(granularity, None if implied is not None else 1 - density)
            sparse, layers = pruned(model, config)
            found = quality(model, config, dense)
            for count in options.threads:
                for batch in options.batches:
                    with threads(count), torch.inference_mode():
                        measured = measure(options, dense, sparse, batch)
                    case = {
                        "model": "MobileNetV2", "batch": batch, "threads": count, "dtype": "float32",
                        "granularity": granularity.label, "density": density, "layers": layers,
                    }  # fmt: skip
                    yield {"suite": "mobilenet", "case": case, **measured, "quality": found, "env": env}


def measure(options: argparse.Namespace, dense: nn.Module, sparse: nn.Module, batch: int) -> dict[str, Any]:
    x, calls, peaks = torch.randn(batch, 3, SIZE, SIZE), {}, {}
    for form, layout in FORMATS.items():
        image = x.contiguous(memory_format=layout)
        for kind, model in (("dense", dense), ("sparse", sparse)):
            own = copy.deepcopy(model).to(memory_format=layout)
            calls[f"{kind} {form}"] = partial(own, image)
            peaks[f"{kind} {form}"] = weight_bytes(own) + growth(own, image)
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
    case = record["case"]
    judgement = "; ".join(
        f"{way} top-1 {found['top1']:.2f}, logits {found['logit_error']:.2f}, KL {found['kl']:.2f}"
        for way, found in record["quality"].items()
    )
    medians = ", ".join(f"{name} {sample['median'] * 1e3:.1f}" for name, sample in record["variants"].items())
    peaks = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in record["peak_bytes"].items())
    return (
        f"{case['threads']}t batch {case['batch']} {case['granularity']:>6s} d={case['density']:<5.3g} "
        f"{record['speedup']:.2f}x  {judgement}  ms: {medians}  peak MiB: {peaks}"
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
