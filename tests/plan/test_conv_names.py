"""The kernel that is named for a convolution is the one that runs it, given how it is called."""

import pytest
import torch

import sparsekern as sk
from sparsekern.backends.formats import blocks_of, is_nm
from sparsekern.layouts import Geometry, Granularity
from sparsekern.ops_conv import layout_of
from sparsekern.plan import ConvCall, ConvRequest, conv_kernel_name
from sparsekern.plan.registry import backend_named

LAYOUTS = (torch.contiguous_format, torch.channels_last)
PLAIN = Geometry((48, 16, 1, 1), (1, 1), (0, 0), (1, 1), 1)
GEOMETRIES = [
    PLAIN,
    PLAIN._replace(stride=(2, 2)),
    PLAIN._replace(padding=(1, 0)),
    PLAIN._replace(shape=(48, 16, 3, 3), padding=(1, 1)),
    PLAIN._replace(shape=(48, 16, 3, 1)),
    PLAIN._replace(shape=(96, 16, 1, 1), groups=2),
]
SIZES = ((1, 1), (3, 5), (7, 7), (12, 12), (28, 28))


def run(packed: sk.PackedWeight, geometry: Geometry, x: torch.Tensor, kernel: str) -> torch.Tensor:
    granularity, rest = packed.granularity, (None, *geometry, "none", kernel)
    if is_nm(granularity):
        numbers = (granularity.n, granularity.m, *rest[1:])
        return torch.ops.sparsekern.nm_conv2d(x, *packed.tensors, None, *numbers)
    return torch.ops.sparsekern.block_conv2d(x, *blocks_of(granularity, packed.tensors), *rest)


@pytest.mark.needs_native
@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.Block(8, 1), sk.Unstructured(), sk.NM(2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_named_kernel_computes_the_same_bits(granularity: Granularity, dtype: torch.dtype, isa: str) -> None:
    records, products = {record.name: record for record in sk.kernels()}, 0
    for geometry in GEOMETRIES:
        weight = torch.randn(tuple(geometry.shape)).to(dtype)
        packed = sk.pack(weight, granularity, sk.make_mask(weight, granularity, granularity.implied_sparsity or 0.5))
        request = ConvRequest(granularity, tuple(geometry.shape), geometry.groups, dtype, "cpu")  # type: ignore[arg-type]
        for size in (size for size in SIZES if min(geometry.output_size(size)) > 0):
            for layout in LAYOUTS:
                x = torch.randn(2, 16 * geometry.groups, *size).to(dtype).contiguous(memory_format=layout)
                call = ConvCall(tuple(x.shape), layout_of(x), geometry)  # type: ignore[arg-type]
                name, y = conv_kernel_name(request, call), run(packed, geometry, x, "")
                as_product = records[name].op.endswith("linear")
                assert records[name].runs_here and (call.is_product or not as_product)
                assert call.pixels == y.numel() // y.shape[1]
                if not as_product:
                    assert torch.equal(y, run(packed, geometry, x, name))
                    continue
                products += 1
                matrix = sk.pack(packed.to_dense().flatten(1), granularity)
                rows = x.permute(0, 2, 3, 1).flatten(0, 2)
                again = backend_named("cpu").linear_by(
                    name, rows, granularity, matrix.shape, matrix.tensors, None, "none"
                )
                assert torch.equal(y.permute(0, 2, 3, 1).flatten(0, 2), again)
    # Channels-last images of a plain 1x1 kernel, and one pixel in either layout; larger ones some kernels read as is.
    assert products in (len(SIZES) + 1, sum(height * width < 64 for height, width in SIZES) + 1)


def test_on_gpus_the_pixels_decide() -> None:
    cuda, granularity = backend_named("cuda"), sk.Block(64, 64)
    request = ConvRequest(granularity, (128, 64, 1, 1), 1, torch.bfloat16, "cuda")
    plain = PLAIN._replace(shape=(128, 64, 1, 1))
    few = ConvCall((4, 64, 2, 2), torch.channels_last, plain)
    assert cuda.conv_kernel_name(request, few).startswith("block_decode_")
    assert cuda.conv_kernel_name(request) == cuda.conv_kernel_name(
        request, few.__class__((4, 64, 9, 9), few.layout, plain)
    )
    strided = ConvCall((4, 64, 9, 9), torch.channels_last, plain._replace(stride=(2, 2)))
    assert cuda.conv_kernel_name(request, strided).startswith("block_conv_")
