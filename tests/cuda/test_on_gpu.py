"""The CUDA kernels where they belong. Everything here waits for a GPU; tests/emulator runs the same kernels without."""

from __future__ import annotations

import pytest
import torch
from cases import FEW, MANY, Case, block_cases, nm_cases
from convolutions import CONVOLUTIONS, Convolution, assert_convolved, draw
from products import assert_near
from torch import Tensor

import sparsekern as sk
from sparsekern.backends.cuda import device_refusal
from sparsekern.plan.registry import backend_named

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")

# So few outputs of so many inputs that several thread blocks share them.
SHARED = [
    *(Case(90, 16384, m, sk.Block(rows, 32), 0.6, dtype, "silu", True)
      for rows, m, dtype in ((32, 1, torch.bfloat16), (32, 16, torch.float16), (16, 9, torch.bfloat16))),
    *(Case(77, 16384, m, sk.NM(2, 4), 0.5, dtype, "gelu", True)
      for m, dtype in ((1, torch.float16), (16, torch.bfloat16))),
]  # fmt: skip
CASES = [*block_cases((128, 64, 32, 16, 48), MANY + FEW), *nm_cases(MANY * 2 + FEW * 2), *SHARED]


@pytest.fixture(autouse=True)
def kernels_whatever_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = device_refusal()
    assert reason is None, reason
    monkeypatch.setattr("sparsekern.backends.gpu._fastest", lambda *arguments: "cuda")


def on_gpu(packed: sk.PackedWeight) -> sk.PackedWeight:
    parts = {name: part.cuda() for name, part in packed.parts.items()}
    return sk.PackedWeight.from_tensors(packed.granularity, packed.shape, list(parts.values()))


def operands(case: Case) -> tuple[sk.PackedWeight, Tensor, Tensor | None]:
    bias = case.numbers(case.outputs).cuda() if case.bias else None
    return on_gpu(case.weight()), case.numbers(case.tokens, case.inputs).cuda(), bias


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products(case: Case) -> None:
    packed, x, bias = operands(case)
    y = sk.linear(x, packed, bias, None if case.activation == "none" else case.activation)
    dense = packed.to_dense().cpu()
    assert_near(y.cpu(), x.cpu(), dense, None if bias is None else bias.cpu(), case.activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case", [*CONVOLUTIONS, *(draw(seed, (16, 32, 48, 64, 128), groups=(1,)) for seed in range(100))], ids=str
)
def test_convolutions(case: Convolution, dtype: torch.dtype) -> None:
    packed, x, bias = case.packed(dtype), case.image(dtype), torch.randn(case.outputs).to(dtype)
    if reason := backend_named("cuda").window_refusal(packed.granularity, case.shape, case.groups):
        pytest.skip(reason)
    parts = [part.cuda() for part in packed.tensors]
    for images in (x, x.contiguous()):
        rest = (bias.cuda(), case.shape, *case.numbers, "hardswish", "")
        y = torch.ops.sparsekern.block_conv2d(images.cuda(), *parts, *rest)
        assert_convolved(case, y.cpu(), images, packed, bias, "hardswish", unit=0.51)


@pytest.mark.parametrize("case", block_cases((128, 64, 32, 16, 48), MANY), ids=str)
def test_gradients(case: Case) -> None:
    packed, x, _ = operands(case)
    if packed.values.numel() == 0:
        packed = on_gpu(sk.pack(torch.ones(packed.shape, dtype=case.dtype), case.granularity))
    x.requires_grad_()
    values = packed.values.clone().requires_grad_()
    trained = sk.PackedWeight(packed.granularity, packed.shape, packed.parts | {"values": values}, verified=True)
    grad = case.numbers(case.tokens, case.outputs).cuda()
    sk.linear(x, trained).backward(grad)
    dense = packed.to_dense()
    assert_near(x.grad.cpu(), grad.cpu(), dense.cpu().T)
    wanted = packed.granularity.gather(grad.double().T @ x.detach().double(), packed.parts)
    size = packed.granularity.gather(grad.double().abs().T @ x.detach().double().abs(), packed.parts)
    error = (values.grad.double() - wanted).abs()
    assert bool((error <= 0.51 * torch.finfo(case.dtype).eps * wanted.abs() + 2e-6 * size + 1e-7).all())


def example(dtype: torch.dtype = torch.bfloat16) -> tuple[sk.PackedWeight, Tensor]:
    case = Case(384, 512, 64, sk.Block(64, 64), 0.5, dtype)
    packed, x, _ = operands(case)
    return packed, x


def test_packs_on_the_device() -> None:
    weight = torch.randn(130, 260, device="cuda").bfloat16()
    for granularity in (sk.Block(16, 32), sk.NM(2, 4)):
        mask = sk.make_mask(weight, granularity, None if isinstance(granularity, sk.NM) else 0.5)
        packed = sk.pack(weight, granularity, mask)
        on_cpu = sk.pack(weight.cpu(), granularity, mask.cpu())
        for name, part in packed.parts.items():
            assert part.is_cuda and torch.equal(part.cpu(), on_cpu.parts[name]), name
        assert torch.equal(packed.to_dense(), weight * mask)


def test_on_another_stream() -> None:
    packed, x = example()
    wanted = sk.linear(x, packed)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long enough that a product on the wrong stream would read what is not there yet.
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        y = sk.linear(late, packed)
    stream.synchronize()
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("tokens", [5, 64])
def test_in_a_cuda_graph(tokens: int) -> None:
    packed, x = example()
    x = x[:tokens].clone()
    sk.linear(x, packed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = sk.linear(x, packed)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, sk.linear(x, packed))


def test_layouts_of_inputs() -> None:
    packed, x = example()
    wanted = sk.linear(x, packed)
    wide = torch.full((64, 1024), float("nan"), device="cuda", dtype=x.dtype)
    wide[:, 8:520] = x
    odd = torch.full((64, 1025), float("nan"), device="cuda", dtype=x.dtype)
    odd[:, 1:513] = x
    for view in (wide[:, 8:520], odd[:, 1:513], x.T.contiguous().T, x.view(4, 16, 512).transpose(0, 1).transpose(0, 1)):
        assert torch.equal(sk.linear(view, packed).reshape(64, -1), wanted)
    assert sk.linear(x[:0], packed).shape == (0, 384)


def test_no_tokens_have_gradients() -> None:
    packed, x = example()
    values = packed.values.clone().requires_grad_()
    trained = sk.PackedWeight(packed.granularity, packed.shape, packed.parts | {"values": values}, verified=True)
    sk.linear(x[:0].requires_grad_(), trained).sum().backward()
    assert values.grad is not None and not values.grad.any()


def test_same_bits_again() -> None:
    packed, x = example()
    layer = [sk.linear(x[:tokens], packed) for tokens in (3, 64) for _ in range(3)]
    assert torch.equal(layer[0], layer[1]) and torch.equal(layer[1], layer[2])
    assert torch.equal(layer[3], layer[4]) and torch.equal(layer[4], layer[5])


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_same_bits_where_thread_blocks_share(case: Case) -> None:
    packed, x, bias = operands(case)
    first = sk.linear(x, packed, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = sk.linear(x, packed, bias)
    for _ in range(10):
        graph.replay()
        assert torch.equal(again, first)


def test_compiled() -> None:
    packed, x = example()
    run = torch.compile(lambda x: sk.linear(x, packed, activation="silu"), fullgraph=True)
    assert torch.equal(run(x), sk.linear(x, packed, activation="silu"))


def test_errors_name_what_came() -> None:
    packed, x = example()
    with pytest.raises(TypeError, match="cpu"):
        sk.linear(x.cpu(), packed)
    values, columns, offsets = packed.tensors
    op = torch.ops.sparsekern.block_linear.default
    with pytest.raises(RuntimeError, match="no CUDA kernel named 'nonsense'"):
        op(x, values, columns, offsets, None, *packed.shape, "none", "nonsense")
    with pytest.raises(RuntimeError, match="takes multiples of 128"):
        op(x, values, columns, offsets, None, *packed.shape, "none", "block_h128")
    with pytest.raises(RuntimeError, match="expected bfloat16 or float16 values"):
        op(x.float(), values.float(), columns, offsets, None, *packed.shape, "none", "")
    with pytest.raises(RuntimeError, match="on the device of the values"):
        op(x, values, columns.cpu(), offsets, None, *packed.shape, "none", "")
