"""The Triton kernels where they belong. Everything here waits for a GPU; the rest of tests/triton does without."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from cases import Case, block_cases, nm_cases
from convolutions import CONVOLUTIONS, Convolution, assert_convolved, draw
from products import assert_near
from torch import Tensor

import sparsekern as sk
from sparsekern.plan import Request
from sparsekern.plan.registry import backend_named

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

TOKENS = (1, 17, 64, 65, 100, 128, 130, 257, 300)
LONG = [
    # Every buffer of a pipeline several times, by all tiles of tokens.
    Case(16 * 132, 2112, 300, sk.Block(rows, 64), 0.6, dtype, activation, True)
    for rows in (64, 128)
    for dtype in (torch.bfloat16, torch.float16)
    for activation in ("silu", "gelu")
]
BLOCKS = [
    *(Case(rows * 3, 2100, m, sk.Block(rows, cols), 0.5, torch.bfloat16, "gelu", True)
      for rows in (64, 128) for cols in (64, 128) for m in TOKENS),
    *block_cases((128, 64, 32, 16), TOKENS),
    *LONG,
]  # fmt: skip


@pytest.fixture(autouse=True)
def ops_are_known() -> None:
    refusal = backend_named("triton").refusal(Request(sk.Block(64, 64), (128, 128), torch.bfloat16, "cuda"))
    assert refusal is None, refusal


@pytest.fixture(params=["chosen", "by pointers"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernel for blocks that the GPU gets, and that which every GPU can have."""
    from sparsekern.backends.triton import ops, tiles

    capability = ops._capability(torch.device("cuda", 0))
    chosen = tiles.tma_tile(capability, 64, 64, (128, 64), 2, "none") is not None
    if request.param == "by pointers":
        if not chosen:
            pytest.skip("is what this GPU gets anyway")
        monkeypatch.setattr(ops, "tma_tile", lambda *arguments: None)
    elif chosen:
        # So that the tiles of 256 tokens are tried without products as large as the GPU.
        monkeypatch.setattr(tiles, "MULTIPROCESSORS", 40)
    return request.param


def linear(case: Case, packed: sk.PackedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    return backend_named("triton").linear(x, case.granularity, packed.shape, packed.tensors, bias, case.activation)


def operands(case: Case) -> tuple[sk.PackedWeight, Tensor, Tensor | None]:
    packed = case.weight()
    parts = [part.cuda() for part in packed.parts.values()]
    bias = case.numbers(case.outputs).cuda() if case.bias else None
    on_gpu = sk.PackedWeight.from_tensors(packed.granularity, packed.shape, parts)
    return on_gpu, case.numbers(case.tokens, case.inputs).cuda(), bias


def check(case: Case) -> None:
    packed, x, bias = operands(case)
    y = linear(case, packed, x, bias)
    on_cpu = None if bias is None else bias.cpu()
    assert_near(y.cpu(), x.cpu(), packed.to_dense().cpu(), on_cpu, case.activation)


@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_blocks(case: Case, kernel: str) -> None:
    check(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", [*CONVOLUTIONS, *map(draw, range(60))], ids=str)
def test_convolutions(case: Convolution, dtype: torch.dtype) -> None:
    packed, x, bias = case.packed(dtype), case.image(dtype), torch.randn(case.outputs).to(dtype)
    parts = [part.cuda() for part in packed.tensors]
    numbers = (case.stride, case.padding, case.dilation, case.groups)
    for images in (x, x.contiguous()):
        y = backend_named("triton").conv2d(
            images.cuda(), packed.granularity, case.shape, parts, bias.cuda(), *numbers, "hardswish"
        )
        assert_convolved(case, y.cpu(), images, packed, bias, "hardswish", unit=0.51)


@pytest.mark.parametrize("case", nm_cases(TOKENS * 2), ids=str)
def test_nm(case: Case) -> None:
    check(case)


def test_descriptors_in_a_cuda_graph_and_in_another_thread(kernel: str) -> None:
    case = LONG[0]
    packed, x, bias = operands(case)
    wanted = linear(case, packed, x, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(case, packed, x, bias)
        z = linear(case, packed, x + x, bias)
    y.zero_()
    graph.replay()
    assert torch.equal(y, wanted) and torch.equal(z, linear(case, packed, x + x, bias))
    found = []
    thread = threading.Thread(target=lambda: found.append(linear(case, packed, x, bias)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(kernel: str, mode: str) -> None:
    case = LONG[0]
    packed, x, bias = operands(case)
    run = torch.compile(lambda x: linear(case, packed, x, bias), fullgraph=True, mode=mode)
    for _ in range(3):
        assert torch.equal(run(x), linear(case, packed, x, bias))


def test_same_bits_again(kernel: str) -> None:
    case = LONG[-1]
    packed, x, bias = operands(case)
    first = linear(case, packed, x, bias)
    assert all(torch.equal(first, linear(case, packed, x, bias)) for _ in range(20))
