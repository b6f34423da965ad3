"""Every CPU kernel of a convolution that runs here, called by its name, against float64.

Tolerances are the a-priori rounding bounds of a sum, never fitted to what came out.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern import _native
from sparsekern.backends.formats import blocks_of, format_of, is_nm
from sparsekern.layouts import Block, Geometry, Granularity, PackedWeight
from sparsekern.ops import APPLY
from sparsekern.ops_conv import CONV_ACTIVATIONS, layout_of

if _native.native is None:
    pytest.skip(f"no native kernels: {_native.failure}", allow_module_level=True)

KERNELS = [record for record in sk.kernels() if record.op in ("block_conv2d", "nm_conv2d") and record.runs_here]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
UNITS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
SIZES = (1, 3, 7, 14, 15, 28, 30)


def granularities(kernel: sk.KernelRecord) -> list[Granularity]:
    """Layouts that the kernel takes, whether or not it would be chosen for them."""
    if kernel.granularity == "nm":
        return [sk.NM(2, 4), sk.NM(1, 4), sk.NM(4, 8), sk.NM(3, 7)]
    rows = kernel.rows
    blocks = [Block(n * rows, cols) for n, cols in itertools.product((1, 2, 3), (1, 3, 16))]
    return [*blocks, sk.Unstructured(), sk.NM(2, 4, 8)] if rows == 1 else [*blocks, sk.NM(2, 4, 2 * rows)]


@dataclass
class Conv:
    """A convolution with a pruned weight, as the op takes it and in float64."""

    packed: PackedWeight
    geometry: Geometry

    @classmethod
    def random(
        cls, granularity: Granularity, geometry: Geometry, density: float = 0.5, dtype: torch.dtype = torch.float32
    ) -> Conv:
        weight = torch.randn(*geometry.shape).to(dtype)
        sparsity = None if granularity.implied_sparsity is not None else 1 - density
        mask = sk.make_mask(weight.float(), granularity, sparsity) if density else torch.zeros_like(weight).bool()
        return cls(sk.pack(weight, granularity, mask), geometry)

    def __call__(self, x: Tensor, bias: Tensor | None = None, activation: str = "none", kernel: str = "") -> Tensor:
        granularity, tensors = self.packed.granularity, self.packed.tensors
        rest = (*self.geometry, activation, kernel)
        if is_nm(granularity):
            return torch.ops.sparsekern.nm_conv2d(x, *tensors, bias, granularity.n, granularity.m, *rest)
        return torch.ops.sparsekern.block_conv2d(x, *blocks_of(granularity, tensors), bias, *rest)

    def check(self, x: Tensor, bias: Tensor | None = None, activation: str = "none", kernel: str = "") -> None:
        y = self(x, bias, activation, kernel)
        _, stride, padding, dilation, groups = self.geometry
        dense = self.packed.to_dense().double()

        def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

        wide = None if bias is None else bias.double()
        expected = APPLY[activation](convolved(x.double(), dense, wide))
        size = convolved(x.double().abs(), dense.abs(), None if wide is None else wide.abs())
        terms = dense[0].numel() + 8
        # Any order of a sum in float32, an activation that is no steeper than 1.5 (hardswish) and exact to some units;
        # then one rounding to the dtype.
        bound = 1.5 * terms * UNITS[torch.float32] * size + 1e-6 + UNITS[x.dtype] * 1.01 * expected.abs()
        assert y.shape == expected.shape and y.dtype == x.dtype
        assert y.is_contiguous(memory_format=layout_of(x))
        worst = ((y.double() - expected).abs() - bound).max() if y.numel() else torch.tensor(0.0)
        assert worst <= 0, f"{worst} beyond the bound: {self.packed.granularity}, {self.geometry}, {list(x.shape)}"


def image(*shape: int, dtype: torch.dtype = torch.float32, form: str = "contiguous") -> Tensor:
    """Random pixels: contiguous, channels last, a part of either, or with columns outermost."""
    n, c, h, w = shape
    if form == "contiguous":
        return torch.randn(shape).to(dtype)
    if form == "channels_last":
        return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    if form == "part":
        return torch.randn(n, c, h + 2, 2 * w).to(dtype)[:, :, 1:-1, ::2]
    if form == "channels_last_part":
        whole = torch.randn(n, c + 5, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
        return whole[:, 2:-3]
    return torch.randn(n, c, w, h).to(dtype).transpose(2, 3)


FORMS = ("contiguous", "channels_last", "part", "channels_last_part", "transposed")


def a_geometry(random: random.Random, granularity: Granularity) -> tuple[Geometry, tuple[int, int]]:
    """A geometry that the granularity fits into, and a size of images that it fits into."""
    format_ = format_of(granularity)
    band = 16 if is_nm(granularity) else format_.rows
    while True:
        groups = random.choice([1, 1, 1, 2, 3])
        kernel = random.choice([(1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (7, 7), (2, 4)])
        channels = random.choice([1, 3, 4, 8, 16, 17, 32, 33])
        outputs = (
            band * random.choice([1, 2]) if groups > 1 else band * random.choice([1, 2, 3]) + random.choice([0, 0, 5])
        )
        stride, dilation = ([random.choice([1, 1, 2, 3]) for _ in range(2)] for _ in range(2))
        padding = [random.choice([0, 1, 2, 3]) for _ in range(2)]
        size = (random.choice(SIZES), random.choice(SIZES))
        geometry = Geometry([outputs * groups, channels, *kernel], stride, padding, dilation, groups)
        inputs = channels * kernel[0] * kernel[1]
        fits = inputs >= (granularity.m if isinstance(granularity, sk.NM) else format_.cols)
        if fits and min(geometry.output_size(size)) > 0:
            return geometry, size


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_random_geometries(kernel: sk.KernelRecord, dtype: torch.dtype, threads: int) -> None:
    choose = random.Random(f"{kernel.name} {dtype} {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(40):
            granularity = choose.choice(granularities(kernel))
            geometry, size = a_geometry(choose, granularity)
            conv = Conv.random(granularity, geometry, choose.choice([1.0, 0.5, 0.1]), dtype)
            shape = (choose.choice([1, 1, 2, 3]), geometry.shape[1] * geometry.groups, *size)
            bias = choose.choice([None, torch.randn(geometry.shape[0]).to(dtype)])
            x = image(*shape, dtype=dtype, form=choose.choice(FORMS))
            conv.check(x, bias, choose.choice(CONV_ACTIVATIONS), kernel.name)
    finally:
        torch.set_num_threads(before)


@every_kernel
@pytest.mark.parametrize("form", FORMS)
def test_every_width_of_pixels_alone(kernel: sk.KernelRecord, form: str) -> None:
    """Kernels of 1 x 1 read a contiguous image where it is, and nothing beyond it."""
    granularity = granularities(kernel)[0]
    geometry = Geometry([32, 24, 1, 1], [1, 1], [0, 0], [1, 1], 1)
    conv, bias = Conv.random(granularity, geometry), torch.randn(32)
    for width in (*range(1, 20), 31, 33, 47, 48, 49, 50, 64, 97, 130):
        conv.check(image(1, 24, 1, width, form=form), bias, "relu", kernel.name)
    conv.check(image(3, 24, 7, 7, form=form), None, "none", kernel.name)


@every_kernel
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_panel_of_pixels(kernel: sk.KernelRecord, dtype: torch.dtype, stride: int, padding: int) -> None:
    """Rows as wide as panels of one, two and four rows are, and a pixel more and less; with and without copies."""
    granularity, bias = granularities(kernel)[0], torch.randn(37).to(dtype)
    pointwise = Conv.random(granularity, Geometry([37, 8, 1, 1], [stride] * 2, [padding] * 2, [1, 1], 1), dtype=dtype)
    square = Conv.random(granularity, Geometry([37, 8, 3, 3], [stride] * 2, [padding] * 2, [1, 2], 1), dtype=dtype)
    widths, heights = (1, 6, 7, 8, 13, 14, 15, 16, 17, 27, 28, 29, 45, 57), (1, 5, 7, 3, 2, 6, 5) * 2
    for out in zip(heights, widths, strict=True):
        for conv, reach in ((pointwise, (0, 0)), (square, (2, 4))):
            size = [max(1, (out[i] - 1) * stride + 1 + reach[i] - 2 * padding) for i in range(2)]
            for form in FORMS:
                conv.check(image(2, 8, *size, dtype=dtype, form=form), bias, "relu6", kernel.name)


@every_kernel
@pytest.mark.parametrize("dims", [(0, 2, 3), (2, 3), (3,), (1,)])
def test_images_that_repeat_their_numbers(kernel: sk.KernelRecord, dims: tuple[int, ...]) -> None:
    """Expanded images: steps of 0 numbers from a pixel, a row or a channel to the next."""
    sizes = [2, 8, 9, 18]
    small = torch.randn([1 if dim in dims else size for dim, size in enumerate(sizes)])
    for kernel_size in (1, 3):
        geometry = Geometry([32, 8, kernel_size, kernel_size], [1, 1], [0, 0], [1, 1], 1)
        Conv.random(granularities(kernel)[0], geometry).check(small.expand(sizes), None, "none", kernel.name)


@every_kernel
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 17), (40, 3)])
def test_padding_wider_than_the_image(kernel: sk.KernelRecord, size: tuple[int, int]) -> None:
    geometry = Geometry([32, 8, 3, 3], [2, 1], [11, 7], [1, 2], 1)
    Conv.random(granularities(kernel)[0], geometry).check(image(2, 8, *size), torch.randn(32), "hardswish", kernel.name)


@every_kernel
@pytest.mark.parametrize("activation", CONV_ACTIVATIONS)
def test_activations(kernel: sk.KernelRecord, activation: str) -> None:
    conv = Conv.random(granularities(kernel)[0], Geometry([32, 16, 3, 3], [1, 1], [1, 1], [1, 1], 1))
    for form in FORMS:
        conv.check(4 * image(1, 16, 9, 21, form=form), None, activation, kernel.name)


@every_kernel
def test_empty_weights_and_no_images(kernel: sk.KernelRecord) -> None:
    geometry = Geometry([32, 16, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    granularity, bias = granularities(kernel)[0], torch.randn(32)
    conv = Conv.random(granularity, geometry, 0.0)
    conv.check(image(2, 16, 8, 8), bias, "relu", kernel.name)
    assert conv(image(0, 16, 8, 8), bias, "none", kernel.name).shape == (0, 32, 8, 8)


@every_kernel
def test_infinity_in_an_image_stays_where_the_taps_reach(kernel: sk.KernelRecord) -> None:
    """What kernels read beside an image, and the inputs that a weight is padded with, count nothing."""
    geometry = Geometry([48, 5, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    granularity = next(g for g in reversed(granularities(kernel)) if not isinstance(g, sk.NM) or g.rows == 1)
    conv = Conv.random(granularity, geometry, 1.0)
    x = image(2, 5, 12, 20)
    x[0, :, 0, 0] = torch.inf
    y, clean = conv(x, kernel=kernel.name), conv(x.nan_to_num(posinf=1.0), kernel=kernel.name)
    assert torch.equal(y[1], clean[1]) and torch.equal(y[0, :, 2:], clean[0, :, 2:])
    assert torch.equal(y[0, :, :2, 2:], clean[0, :, :2, 2:])


@every_kernel
def test_sums_do_not_depend_on_the_threads(kernel: sk.KernelRecord) -> None:
    geometry = Geometry([64, 32, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    conv, before = Conv.random(granularities(kernel)[0], geometry), torch.get_num_threads()
    found = []
    for size in ((7, 7), (28, 28)):
        x = image(2, 32, *size)
        try:
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                found.append(conv(x, kernel=kernel.name))
                assert torch.equal(found[-1], conv(x, kernel=kernel.name))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(y, found[-1]) for y in found[-4:])


def test_pixels_alone_with_channels_side_by_side_are_a_product() -> None:
    """The op then takes the kernels of products, for all of whose activations it has names."""
    conv = Conv.random(sk.Block(16, 1), Geometry([48, 32, 1, 1], [1, 1], [0, 0], [1, 1], 1))
    for activation in CONV_ACTIVATIONS:
        for shape in ((1, 32, 1, 2), (2, 32, 5, 7), (1, 32, 30, 30)):
            for dtype in (torch.float32, torch.bfloat16):
                packed = sk.pack(conv.packed.to_dense().to(dtype), sk.Block(16, 1))
                x = image(*shape, dtype=dtype, form="channels_last")
                Conv(packed, conv.geometry).check(x, torch.randn(48).to(dtype), activation)
    part = image(2, 32, 9, 9, form="channels_last_part")
    conv.check(part)


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Unstructured(), sk.NM(2, 4)], ids=lambda g: g.label)
def test_an_image_of_one_pixel_is_a_row_of_a_product_in_either_layout(
    granularity: Granularity, dtype: torch.dtype
) -> None:
    conv = Conv.random(granularity, Geometry([48, 32, 1, 1], [1, 1], [0, 0], [1, 1], 1), dtype=dtype)
    matrix = sk.pack(conv.packed.to_dense().flatten(1), granularity)
    bias = torch.randn(48).to(dtype)
    for batch in (0, 1, 2, 17, 70):
        rows = torch.randn(batch, 32).to(dtype)
        spread = torch.randn(batch, 40, 3, 2).to(dtype)[:, 5:37, 1:2, 1:]  # the channels are six numbers apart
        alike = rows[:1].expand(batch, -1)
        last = rows.view(batch, 1, 1, 32).permute(0, 3, 1, 2)
        part = torch.cat([rows, rows], 1)[:, :32, None, None]
        for x in (rows.view(batch, 32, 1, 1), last, part, spread, alike[..., None, None]):
            conv.check(x, bias, "gelu")
            if x is not spread:
                assert torch.equal(conv(x, bias).flatten(1), sk.linear(x.flatten(1), matrix, bias))
    padded = Conv(conv.packed, conv.geometry._replace(padding=[1, 0]))
    padded.check(torch.randn(3, 32, 1, 1).to(dtype), bias)


# ---- errors --------------------------------------------------------------------------------------


PLAIN = Geometry([32, 16, 3, 3], [1, 1], [1, 1], [1, 1], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 15, 8, 8)}, r"an input \[batch, 16, height, width\] of float32.*got Float \[2, 15"),
        ({"x": torch.randn(16, 8, 8)}, r"expected an input \[batch, 16"),
        ({"x": torch.randn(2, 16, 8, 8).double()}, "of float32 on the CPU, like the values, got Double"),
        ({"x": torch.randn(2, 16, 0, 8)}, "expected an input that the kernel fits into, 3 pixels or more"),
        ({"bias": torch.randn(31)}, r"expected a float32 bias \[32\], got Float \[31\]"),
        ({"geometry": PLAIN._replace(stride=[0, 1])}, "expected a kernel, stride and dilation > 0"),
        ({"geometry": PLAIN._replace(padding=[1, -1])}, "and a padding >= 0, got 3, 1, 1 and -1"),
        ({"geometry": PLAIN._replace(padding=[0, 0], dilation=[9, 1])}, "19 pixels or more with the padding, got 8"),
        ({"geometry": PLAIN._replace(padding=[2**30, 1])}, "sides of 32 bits with the padding, got 2147483656"),
        ({"geometry": PLAIN._replace(stride=[1])}, "two numbers for stride, padding and dilation"),
        ({"geometry": PLAIN._replace(shape=[32, 16, 3])}, "expected four sizes of the weight, got 3"),
        ({"geometry": PLAIN._replace(shape=[32, 16, 3, 0])}, "expected sizes of the weight > 0"),
        ({"geometry": PLAIN._replace(shape=[32, 15, 3, 3])}, "."),
        ({"geometry": PLAIN._replace(shape=[32, 8, 3, 6], groups=0)}, "groups > 0"),
        ({"activation": "tanh"}, "expected an activation of none, relu, gelu, silu, relu6, hardswish, got 'tanh'"),
        ({"kernel": "none such"}, "no kernel named 'none such'"),
        ({"kernel": "conv_nm_portable"}, "'conv_nm_portable' does not run on this CPU or does not take blocks of 16"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    conv = Conv.random(sk.Block(16, 1), PLAIN)
    arguments: dict[str, object] = {"x": torch.randn(2, 16, 8, 8), "bias": None, "activation": "none", "kernel": ""}
    conv.geometry = change.pop("geometry", PLAIN)
    with pytest.raises(RuntimeError, match=message):
        conv(**(arguments | change))


def test_planes_beyond_32_bits_are_refused() -> None:
    """A stride of nearly all of the padding leaves an output of few pixels, with taps far apart."""
    far = 2**28
    geometry = Geometry([32, 16, 2, 2], [far - 1, far - 1], [far, far], [far, far], 1)
    conv = Conv.random(sk.Block(16, 1), geometry)
    conv.check(torch.randn(1, 16, 3, 3))
    conv.geometry = geometry._replace(stride=[far, 1], padding=[far, far // 2 - 1])
    assert min(conv.geometry.output_size((3, 3))) > 0
    with pytest.raises(RuntimeError, match=r"a few rows, with all channels.* less than 2\^31 numbers, got 16 channels"):
        conv(torch.randn(1, 16, 3, 3))


def test_groups_that_cut_a_block_are_refused() -> None:
    conv = Conv.random(sk.Block(16, 1), PLAIN._replace(shape=[48, 16, 3, 3]))
    conv.geometry = conv.geometry._replace(groups=2)
    with pytest.raises(RuntimeError, match="expected groups of whole bands of 16 outputs, got 2 groups of 48 outputs"):
        conv(torch.randn(1, 32, 8, 8))
