"""The picture of `fc_to_conv.py`: canvases whose digits have the colours of the classes that a network gives them."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape

import torch
from torch import Tensor

COLORS = ("#e6194b", "#f58231", "#ffe119", "#9acd32", "#1f9d55", "#42d4f4", "#4f7bff", "#b06bf0", "#f032e6", "#fabed4")
"""Of the digits 0 to 9, on black."""
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328; }
image { image-rendering: pixelated; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } }
"""
LEFT, TOP, GAP, BETWEEN = 150, 66, 6, 30


def draw(images: Tensor, truth: Tensor, cases: Mapping[str, Sequence[Tensor]], stages: Sequence[str]) -> str:
    """An SVG: the canvases and the truth on top, then a row for each case and a column for each stage of it.

    Args:
        images: canvases ``[n, side, side]`` in [0, 1].
        truth: the digit at each pixel, as many; negative where there is none, which stays black in every panel.
        cases: by name, for each stage the digit that was found at each pixel, as many.
        stages: names of the columns.
    """
    count, side = len(images), images.shape[-1]
    wide, high = count * (side + GAP) + 2 * GAP, side + GAP
    gray = (images[..., None].expand(*images.shape, 3) * 255).to(torch.uint8)
    width, height = LEFT + len(stages) * wide, TOP + BETWEEN + (len(cases) + 1) * high
    box = f"-12 0 {width + 12} {height + 12}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{width + 12}" role="img">',
        f"<title>Canvases of digits, segmented with {escape(', '.join(cases))}</title><style>{STYLE}</style>",
        *_legend(),
    ]
    for column, (name, row) in enumerate({"canvas": gray, "truth": _colored(truth, truth >= 0)}.items()):
        parts += [_text(LEFT + column * wide, TOP - 8, name), *_images(row, LEFT + column * wide, TOP)]
    top = TOP + high + BETWEEN
    parts += [_text(LEFT + column * wide, top - 8, stage) for column, stage in enumerate(stages)]
    for line, (name, found) in enumerate(cases.items()):
        y = top + line * high
        parts += [_text(0, y + 20 + 18 * i, words) for i, words in enumerate(name.split(", "))]
        for column, classes in enumerate(found):
            parts += _images(_colored(classes, truth >= 0), LEFT + column * wide, y)
    return "\n".join([*parts, "</svg>\n"])


def _legend() -> list[str]:
    parts = [_text(0, 20, "digit")]
    for digit, color in enumerate(COLORS):
        x = LEFT + 46 * digit
        parts += [f'<rect x="{x}" y="8" width="16" height="16" fill="{color}"/>', _text(x + 22, 21, str(digit))]
    return parts


def _colored(classes: Tensor, ink: Tensor) -> Tensor:
    """``[n, side, side]`` classes as colours ``[n, side, side, 3]``, black without ink."""
    colors = torch.tensor([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in COLORS], dtype=torch.uint8)
    return torch.where(ink[..., None], colors[classes.clamp(min=0)], 0).to(torch.uint8)


def _images(pixels: Tensor, x: int, y: int) -> list[str]:
    """``[n, side, side, 3]`` uint8 side by side."""
    side = pixels.shape[1]
    return [
        f'<image x="{x + i * (side + GAP)}" y="{y}" width="{side}" height="{side}" '
        f'href="data:image/png;base64,{base64.b64encode(png(image)).decode()}"/>'
        for i, image in enumerate(pixels)
    ]


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(text)}</text>'


def png(pixels: Tensor) -> bytes:
    """``[height, width, 3]`` uint8 as a PNG file."""
    height, width, _ = pixels.shape
    # Each line starts with the number of its filter; 0 is none.
    lines = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), pixels.reshape(height, -1)], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    compressed = zlib.compress(bytes(lines.flatten().tolist()), 9)
    chunks = ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
