"""What the back ends of GPUs convolve: single pixels as products, with PyTorch in the place of the kernels."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern.backends import CudaBackend, ReferenceBackend, TritonBackend
from sparsekern.layouts import Geometry
from sparsekern.ops import APPLY
from sparsekern.ops_conv import CONV_ACTIVATIONS, layout_of
from sparsekern.plan import ConvRequest, backends, conv_kernel_name, select_conv
from sparsekern.plan.registry import backend_named

BF16 = torch.bfloat16
LAYOUTS = [torch.contiguous_format, torch.channels_last]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
each_backend = pytest.mark.parametrize("kind", [CudaBackend, TritonBackend])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one that runs the kernels."""
    monkeypatch.setattr("sparsekern.backends.cuda.device_refusal", lambda: None)
    monkeypatch.setattr("sparsekern.backends.triton.backend._device_refusal", lambda: None)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, str]]:
    """The input, the output and the activation of each product, which PyTorch makes."""
    made: list[tuple[Tensor, Tensor, str]] = []
    reference = ReferenceBackend()

    def linear(self: object, x: Tensor, *rest: object) -> Tensor:
        y = reference.linear(x, *rest)  # type: ignore[arg-type]
        made.append((x, y, str(rest[-1])))
        return y

    for kind in (CudaBackend, TritonBackend):
        monkeypatch.setattr(kind, "linear", linear)
        for name in ("grad_input", "grad_values"):
            monkeypatch.setattr(kind, name, getattr(reference, name))
    return made


def packed_weight(outputs: int = 48, inputs: int = 40) -> sk.PackedWeight:
    weight = torch.randn(outputs, inputs, 1, 1)
    return sk.pack(weight, sk.Block(16, 16), sk.make_mask(weight, sk.Block(16, 16), 0.5))


@pytest.mark.parametrize(
    ("shape", "groups", "granularity", "reason"),
    [
        ((64, 64, 1, 1), 1, sk.Block(16, 16), None),
        ((64, 64, 1, 1), 1, sk.NM(2, 4), None),
        ((64, 32, 1, 1), 2, sk.NM(2, 4), "no kernel for convolutions of 1x1 pixels in 2 groups"),
        ((64, 64, 1, 3), 1, sk.NM(2, 4), "no kernel for convolutions of 1x3 pixels"),
        ((64, 64, 1, 1), 1, sk.Unstructured(), "no kernel for unstructured"),
    ],
)
@each_backend
def test_what_is_served(
    gpu: None,
    kind: type[CudaBackend | TritonBackend],
    shape: tuple[int, int, int, int],
    groups: int,
    granularity: sk.Granularity,
    reason: str | None,
) -> None:
    told = kind().conv_refusal(ConvRequest(granularity, shape, groups, BF16, "cuda"))
    assert told is None if reason is None else told is not None and reason in told


@pytest.mark.needs_native
@pytest.mark.parametrize(
    ("granularity", "shape", "groups", "served", "reason"),
    [
        (sk.Block(64, 64), (100, 64, 3, 3), 1, "block_conv_h64", None),
        (sk.Block(16, 64), (100, 48, 3, 3), 1, "block_conv_h16", None),
        (sk.Block(16, 16), (64, 48, 1, 1), 1, "block_h16", None),
        (sk.Block(16, 16), (64, 48, 3, 1), 2, "triton_block_conv", "convolutions of 3x1 pixels in 2 groups"),
        (sk.Block(16, 16), (64, 24, 3, 3), 1, "reference_conv_block", "24 channels are no multiple of 16"),
        (sk.NM(2, 4), (64, 64, 3, 3), 1, "reference_conv_nm", "no kernel for convolutions of 3x3 pixels with 2:4"),
    ],
)  # fmt: skip
def test_windows_of_pixels(
    gpu: None,
    granularity: sk.Granularity,
    shape: tuple[int, int, int, int],
    groups: int,
    served: str,
    reason: str | None,
) -> None:
    request = ConvRequest(granularity, shape, groups, BF16, "cuda")
    told = backend_named("cuda").conv_refusal(request)
    assert told is None if reason is None else told is not None and reason in told
    assert conv_kernel_name(request) == served
    assert served in {record.name for backend in backends() for record in backend.kernels()}


def test_a_stride_goes_to_the_kernel_that_needs_no_copy(
    products: list[tuple[Tensor, Tensor, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    monkeypatch.setattr(CudaBackend, "window_conv2d", lambda self, *rest: taken.append(rest))
    for inputs, windows in ((48, 1), (40, 0)):
        packed = packed_weight(inputs=inputs)
        geometry = Geometry(packed.dense_shape, (2, 2), (0, 0), (1, 1), 1)
        x = torch.randn(1, inputs, 5, 5)
        CudaBackend().conv2d(x, packed.granularity, geometry, packed.tensors, None, "none")
        assert len(taken) == 1 and len(products) == 1 - windows


def test_the_choice_is_that_of_products(gpu: None) -> None:
    def chosen(dtype: torch.dtype, granularity: sk.Granularity, *pixels: int) -> str:
        return select_conv(ConvRequest(granularity, (64, 64, *pixels), 1, dtype, "cuda")).name  # type: ignore[arg-type]

    block = sk.Block(64, 64)
    assert chosen(BF16, block, 1, 1) == "cuda"
    assert chosen(torch.float32, block, 1, 1) == "triton"
    assert chosen(BF16, sk.Unstructured(), 1, 1) == chosen(BF16, sk.NM(2, 4), 3, 3) == "reference"
    request = ConvRequest(block, (64, 64, 1, 1), 1, BF16, "cuda")
    assert backend_named("cuda").conv_kernel_name(request) == "block_h64"
    assert backend_named("triton").conv_kernel_name(request) == "triton_block"


@each_backend
@each_layout
@pytest.mark.parametrize("activation", CONV_ACTIVATIONS)
def test_it_is_the_convolution(
    products: list[tuple[Tensor, Tensor, str]],
    kind: type[CudaBackend | TritonBackend],
    layout: torch.memory_format,
    activation: str,
) -> None:
    packed, bias = packed_weight(), torch.randn(48)
    for stride, padding, size in (((1, 1), (0, 0), (5, 3)), ((2, 3), (0, 0), (5, 8)), ((2, 1), (1, 2), (4, 1))):
        x = torch.randn(2, 40, *size).to(memory_format=layout)
        geometry = Geometry(packed.dense_shape, stride, padding, (1, 1), 1)
        y = kind().conv2d(x, packed.granularity, geometry, packed.tensors, bias, activation)
        expected = APPLY[activation](F.conv2d(x, packed.to_dense(), bias, stride, padding))
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous(memory_format=layout) and layout_of(y) == layout
        assert products[-1][2] == (activation if activation in ("none", "relu", "gelu", "silu") else "none")


@pytest.mark.parametrize("size", [(5, 3), (1, 1)])
def test_channels_last_images_are_not_copied(products: list[tuple[Tensor, Tensor, str]], size: tuple[int, int]) -> None:
    packed = packed_weight()
    x = torch.empty(2, 40, *size, memory_format=torch.channels_last).normal_()
    geometry = Geometry(packed.dense_shape, (1, 1), (0, 0), (1, 1), 1)
    y = CudaBackend().conv2d(x, packed.granularity, geometry, packed.tensors, None, "relu")
    ((rows, product, _),) = products
    assert rows.is_contiguous() and rows.data_ptr() == x.data_ptr()
    assert (
        y.data_ptr() == product.data_ptr() and y.stride() == x.new_empty(y.shape).to(memory_format=LAYOUTS[1]).stride()
    )


def test_no_images(products: list[tuple[Tensor, Tensor, str]]) -> None:
    packed, x = packed_weight(), torch.randn(0, 40, 3, 3)
    geometry = Geometry(packed.dense_shape, (1, 1), (0, 0), (1, 1), 1)
    y = CudaBackend().conv2d(x, packed.granularity, geometry, packed.tensors, None, "relu6")
    assert y.shape == (0, 48, 3, 3)


@each_backend
@each_layout
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(
    products: list[tuple[Tensor, Tensor, str]],
    kind: type[CudaBackend | TritonBackend],
    layout: torch.memory_format,
    stride: int,
) -> None:
    """Those of products where every pixel counts, else the reference's."""
    packed, x = packed_weight(), torch.randn(2, 40, 5, 3).to(memory_format=layout).requires_grad_()
    dense = packed.to_dense().requires_grad_()
    y = F.conv2d(x, dense, None, stride)
    grad = torch.randn_like(y)
    for_x, for_dense = torch.autograd.grad(y, (x, dense), grad)
    geometry = Geometry(packed.dense_shape, (stride, stride), (0, 0), (1, 1), 1)
    weight = (packed.granularity, geometry, packed.tensors)
    found = kind().conv_grad_input(grad, x.detach(), *weight)
    torch.testing.assert_close(found, for_x)
    assert layout_of(found) == layout
    kept = sk.pack(for_dense, packed.granularity, packed.to_dense() != 0)
    torch.testing.assert_close(kind().conv_grad_values(grad, x.detach(), *weight), kept.values)


def test_a_gpu_without_kernels_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr("sparsekern.backends.cuda.load_cuda", lambda: "the CUDA library is not built")
    monkeypatch.setattr("sparsekern.backends.cuda.device_refusal", lambda: "the CUDA library is not built")
    monkeypatch.setattr("sparsekern.backends.triton.backend.find_spec", lambda name: None)
    monkeypatch.setattr("sparsekern.backends.triton.backend._device_refusal", lambda: "Triton is not installed")
    with pytest.raises(RuntimeError, match=r"16x16 torch.bfloat16 on cuda: .*CUDA toolkit.*, or pip install triton"):
        select_conv(ConvRequest(sk.Block(16, 16), (64, 64, 1, 1), 1, BF16, "cuda"))
    # What no installation would serve.
    assert select_conv(ConvRequest(sk.NM(2, 4), (64, 64, 3, 3), 1, BF16, "cuda")).name == "reference"
    assert select_conv(ConvRequest(sk.Unstructured(), (64, 64, 1, 1), 1, BF16, "cuda")).name == "reference"
