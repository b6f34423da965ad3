"""The Triton back end: what it serves, that it stays out of the way, and how torch.compile sees its ops."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import types
from collections.abc import Sequence

import pytest
import torch

import sparsekern as sk
from sparsekern.backends import triton as package
from sparsekern.backends.triton import backend as module, tiles
from sparsekern.layouts import Geometry
from sparsekern.listings import UnreadableError
from sparsekern.ops_conv import layout_of
from sparsekern.plan import ConvRequest, Request, backends, select, select_conv
from sparsekern.plan.registry import backend_named

BF16, FP32 = torch.bfloat16, torch.float32
SHAPE = (256, 512)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one that runs the kernels."""
    monkeypatch.setattr(module, "_device_refusal", lambda: None)


def test_importing_needs_no_triton_and_loads_no_kernel() -> None:
    # None: an attempt to import it is an error. (Where Triton is installed, torch.utils.flop_counter imports it.)
    script = (
        "import sys; sys.modules['triton'] = None; import sparsekern as sk, torch; sk.kernels()\n"
        "sk.linear(torch.randn(3, 32), sk.pack(torch.randn(32, 32), sk.Block(16, 16)))\n"
        "print(*[name for name in sys.modules if name.startswith('sparsekern.backends.triton.')])"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == {f"{package.__name__}.{name}" for name in ("backend", "conv", "tiles")}


def test_it_comes_behind_cuda_and_refuses_weights_of_a_cpu() -> None:
    names = [backend.name for backend in backends()]
    assert names.index("cuda") < names.index("triton") < names.index("reference")
    for device in ("cpu", "meta"):
        refusal = backend_named("triton").refusal(Request(sk.Block(64, 64), SHAPE, BF16, device))
        assert refusal == f"weight is on {device}"


@pytest.mark.parametrize("dtype", [torch.float16, BF16, FP32])
@pytest.mark.parametrize(
    "granularity",
    [*(sk.Block(rows, cols) for rows in tiles.BLOCK_ROWS for cols in (16, 64, 256)), sk.NM(2, 4), sk.NM(4, 8)],
    ids=lambda granularity: granularity.label,
)
def test_what_is_served(gpu: None, granularity: sk.Block | sk.NM, dtype: torch.dtype) -> None:
    for device in ("cuda", "cuda:1"):
        request = Request(granularity, SHAPE, dtype, device)
        assert select(request).name == "triton"
        names = {record.name: record for record in backend_named("triton").kernels()}
        record = names[backend_named("triton").kernel_name(request, 5)]
        assert str(dtype).removeprefix("torch.") in record.dtypes
        assert record.takes_rows(getattr(granularity, "rows", 1))


@pytest.mark.parametrize(
    "granularity, dtype, reason",
    [
        (sk.Block(8, 16), BF16, "blocks of 8 rows, not of 16, 32, 64, 128"),
        (sk.Block(48, 16), BF16, "blocks of 48 rows, not of 16, 32, 64, 128"),
        (sk.Block(256, 16), BF16, "blocks of 256 rows, not of 16, 32, 64, 128"),
        (sk.Block(16, 1), BF16, "blocks of 1 columns, not of a power of two from 16 on"),
        (sk.Block(16, 48), BF16, "blocks of 48 columns, not of a power of two from 16 on"),
        (sk.NM(2, 4, 16), BF16, "16 rows share a choice, which makes blocks of 1 column"),
        (sk.NM(3, 8), BF16, "no kernel for 3:8, but for powers of two"),
        (sk.NM(2, 6), BF16, "no kernel for 2:6, but for powers of two"),
        (sk.NM(4, 32), BF16, "groups of more than 16 inputs"),
        (sk.NM(8, 16), FP32, "groups of more than 8 inputs"),
        (sk.Unstructured(), BF16, "no kernel for unstructured"),
        (sk.Block(16, 16), torch.float64, "no kernel for torch.float64"),
    ],
    ids=str,
)
def test_what_is_refused(gpu: None, granularity: sk.Block, dtype: torch.dtype, reason: str) -> None:
    assert backend_named("triton").refusal(Request(granularity, SHAPE, dtype, "cuda")) == reason


@pytest.mark.parametrize(
    "granularity, shape, groups, reason",
    [
        (sk.Block(64, 64), (100, 64, 3, 3), 1, None),
        (sk.Block(16, 16), (64, 48, 5, 1), 2, None),
        (sk.Block(16, 32), (64, 48, 1, 1), 1, None),  # a product
        (sk.Block(16, 32), (64, 48, 3, 3), 1,
         "blocks of 32 columns reach from one pixel of the kernel into the next, with 48 channels"),
        (sk.Block(64, 16), (64, 16, 3, 3), 2, "blocks of 64 rows lie in several groups of 32 outputs"),
        (sk.Block(8, 16), (64, 16, 3, 3), 1, "blocks of 8 rows, not of 16, 32, 64, 128"),
        (sk.NM(2, 4), (64, 16, 3, 3), 1, "no kernel for convolutions of 3x3 pixels with 2:4; blocks have one"),
    ],
    ids=str,
)  # fmt: skip
def test_convolutions(
    gpu: None, granularity: sk.Granularity, shape: tuple[int, int, int, int], groups: int, reason: str | None
) -> None:
    request = ConvRequest(granularity, shape, groups, BF16, "cuda")
    assert backend_named("triton").conv_refusal(request) == reason
    assert select_conv(request).name == ("reference" if reason else "triton")
    if reason is None:
        records = {record.name: record.op for record in backend_named("triton").kernels()}
        op = "triton_block_linear" if shape[2:] == (1, 1) else "triton_block_conv2d"
        assert records[backend_named("triton").conv_kernel_name(request)] == op


def test_a_stride_of_single_pixels_needs_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, taken = package.TritonBackend(), []
    monkeypatch.setattr(package.TritonBackend, "window_conv2d", lambda self, *rest: taken.append("window"))
    monkeypatch.setattr(
        package.TritonBackend,
        "linear",
        lambda self, x, *rest: taken.append("product") or x.new_empty(*x.shape[:-1], 32),
    )
    x = torch.empty(1, 48, 4, 4)
    for cols, stride, way in ((16, 1, "product"), (16, 2, "window"), (32, 2, "product")):
        geometry = Geometry((32, 48, 1, 1), (stride, stride), (0, 0), (1, 1), 1)
        backend.conv2d(x, sk.Block(16, cols), geometry, [], None, "none")
        assert taken.pop() == way


def test_weights_beyond_32_bits_are_refused(gpu: None) -> None:
    block = sk.Block(16, 16)
    backend = backend_named("triton")
    assert backend.refusal(Request(block, (2**15, 2**16), BF16, "cuda")) == "2^31 weights or more"
    assert backend.refusal(Request(block, (2**15, 2**16 - 16), BF16, "cuda")) is None


@pytest.mark.parametrize(
    "triton, capabilities, hip, reason",
    [
        (False, [(9, 0)], None, "Triton is not installed: pip install triton"),
        (True, [], None, "PyTorch finds no CUDA device"),
        (True, [(9, 0), (7, 5)], None, "a GPU of compute capability 7.5, below 8.0"),
        (True, [(9, 4)], "6.2", "AMD GPUs"),
        (True, [(8, 0), (12, 0)], None, None),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch,
    triton: bool,
    capabilities: list[tuple[int, int]],
    hip: str | None,
    reason: str | None,
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(module, "_import_ops", lambda: None)
    assert module._device_refusal.__wrapped__() == reason


def test_a_triton_that_fails_to_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{package.__name__}.ops")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(package, "ops", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    reason = module._import_ops()
    assert reason is not None and reason.startswith("Triton fails to import: ")


# ---- with Triton ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "capability, like", [(80, 80), (87, 86), (89, 89), (90, 90), (103, 100), (120, 120), (121, 120)]
)
def test_unlisted_architectures_are_taken_for_the_next_lower(capability: int, like: int) -> None:
    assert tiles.block_tile(capability, 128, 1000, 2) == tiles.block_tile(like, 128, 1000, 2)
    assert tiles.block_tile(capability, 128, 1000, 2).stages == tiles.ARCHITECTURES[like].high


def test_tiles_of_256_tokens_are_for_products_that_fill_the_gpu() -> None:
    def tokens(capability: int, rows: int, tokens: int, activation: str = "silu") -> int:
        tile = tiles.tma_tile(capability, rows, 64, (tokens, 4096), 2, activation)
        assert tile is not None and tile.warps == tiles.TMA_WARPS[capability]
        return tile.tokens

    for capability in tiles.TMA_WARPS:
        assert tokens(capability, 64, 100) == tokens(capability, 128, 1024) == 128
        assert tokens(capability, 64, 1024) == tokens(capability, 128, 2048) == 256
        assert tokens(capability, 128, 2048, "gelu") == 128, "for want of registers"


def test_a_tile_holds_few_tokens_at_once() -> None:
    for tokens in (1, 16, 17, 64, 65, 1000):
        wanted = next((size for size in tiles.TOKENS if tokens <= size), 128)
        assert tiles.block_tile(90, 64, tokens, 2).tokens == tiles.nm_tile(90, 4, tokens, 2).tokens == wanted


def test_the_ops_refuse_what_is_on_no_gpu() -> None:
    ops = needs_compiler()
    packed, x = sk.pack(torch.randn(64, 64), sk.Block(16, 16)), torch.randn(3, 64)
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, got them on cpu"):
        ops.triton_block_linear(x, *packed.tensors, None, 64, 64, "none")
    with pytest.raises(ValueError, match=r"expected an input \[\.\.\., 64\]"):
        ops.triton_block_linear(x[:, 1:], *packed.tensors, None, 64, 64, "none")
    packed, x = sk.pack(torch.randn(64, 16, 2, 2), sk.Block(16, 16)), torch.randn(2, 16, 4, 4)
    numbers = ([64, 16, 2, 2], [1, 1], [0, 0], [1, 1], 1, "none")
    with pytest.raises(ValueError, match="triton_block_conv2d: expected tensors on a CUDA device, got them on cpu"):
        torch.ops.sparsekern.triton_block_conv2d(x, *packed.tensors, None, *numbers)


def traced(
    layer: torch.nn.Module, inputs: Sequence[torch.Tensor], capability: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, torch.Tensor]:
    """The only kernel in the graph of a layer, which must write its output alone, and the layer's output."""
    ops = needs_compiler()
    from torch._functorch.aot_autograd import aot_export_module
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = types.SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", capability, 32))
    monkeypatch.setattr(driver, "_active", target)
    monkeypatch.setattr(ops, "_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: contextlib.nullcontext())
    with FakeTensorMode():
        on_gpu = [torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="cuda") for part in inputs]
        graph = aot_export_module(layer, on_gpu, trace_joint=False)[0].graph
    (kernel,) = [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    assert kernel.kwargs["tensors_to_clone"] == ["y"]
    (output,) = next(iter(reversed(graph.nodes))).args[0]
    return kernel_side_table.get_kernel(kernel.kwargs["kernel_idx"]).fn.__name__, output.meta["val"]


@pytest.mark.parametrize(
    "granularity, capability, name",
    [
        (sk.Block(32, 16), 80, "block_linear_kernel"),
        (sk.Block(64, 64), 90, "block_linear_tma_kernel"),
        (sk.NM(2, 4), 80, "nm_linear_kernel"),
    ],
    ids=str,
)
def test_the_compiler_sees_the_kernel_and_that_it_writes_the_output_alone(
    granularity: sk.Block | sk.NM, capability: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, bias: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor]:
            return (backend_named("triton").product(x, granularity, (80, 100), parts, bias, "gelu"),)

    needs_compiler()
    weight = torch.randn(80, 100).half()
    parts = sk.pack(weight, granularity, sk.make_mask(weight, granularity, 0.5)).tensors
    found, y = traced(Layer(), [weight.new_empty(2, 35, 100), weight.new_empty(80), *parts], capability, monkeypatch)
    assert found == name and y.shape == (2, 35, 80)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_compiler_sees_the_kernel_of_convolutions(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, shape = sk.Block(32, 16), (80, 48, 3, 3)

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, bias: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor]:
            geometry = Geometry(shape, (2, 1), (1, 1), (1, 1), 1)
            return (backend_named("triton").conv2d(x, block, geometry, parts, bias, "relu6"),)

    needs_compiler()
    weight, x = torch.randn(shape).half(), torch.empty(2, 48, 7, 9).half().to(memory_format=layout)
    parts = sk.pack(weight, block, sk.make_mask(weight, block, 0.5)).tensors
    found, y = traced(Layer(), [x, weight.new_empty(80), *parts], 80, monkeypatch)
    assert found == "block_conv2d_kernel" and y.shape == (2, 80, 4, 9) and layout_of(y) == layout


def test_flops_are_those_of_the_stored_weights() -> None:
    needs_compiler()
    from torch.utils.flop_counter import FlopCounterMode

    packed = sk.pack(torch.randn(64, 64), sk.Block(16, 16), sk.make_mask(torch.randn(64, 64), sk.Block(16, 16), 0.75))
    parts = [part.to("meta") for part in packed.tensors]
    with FlopCounterMode(display=False) as counter:
        torch.ops.sparsekern.triton_block_linear(torch.empty(2, 3, 64, device="meta"), *parts, None, 64, 64, "none")
    assert counter.get_total_flops() == 2 * 6 * 64 * 64 // 4

    weight = torch.randn(64, 16, 2, 2)
    packed = sk.pack(weight, sk.Block(16, 16), sk.make_mask(weight, sk.Block(16, 16), 0.75))
    parts, x = [part.to("meta") for part in packed.tensors], torch.empty(2, 16, 5, 4, device="meta")
    with FlopCounterMode(display=False) as counter:
        numbers = ([64, 16, 2, 2], [1, 1], [0, 0], [1, 1], 1, "none")
        torch.ops.sparsekern.triton_block_conv2d(x, *parts, None, *numbers)
    assert counter.get_total_flops() == 2 * (2 * 4 * 3) * 64 * 64 // 4


def needs_compiler() -> types.ModuleType:
    """The ops, for GPUs."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    from sparsekern.backends.triton import ops, ops_conv  # noqa: F401

    if ops.INTERPRET:
        pytest.skip("TRITON_INTERPRET=1 takes the place of the compiler")
    return ops


@pytest.mark.parametrize(
    ("granularity", "dtype", "target", "wanted"),
    [
        (sk.Block(64, 64), FP32, "sm_80", "FFMA"),
        (sk.Block(64, 64), BF16, "sm_80", "HMMA"),
        (sk.NM(1, 4), BF16, "sm_90a", "HGMMA"),
    ],
)
def test_its_code_is_shown_from_its_ir_to_machine_code(
    granularity: sk.Granularity, dtype: torch.dtype, target: str, wanted: str
) -> None:
    pytest.importorskip("triton")
    code = backend_named("triton").code("", Request(granularity, SHAPE, dtype, "cuda"), 128, target)
    assert code is not None and code.kernel == f"triton_{granularity.kind}"
    assert [listing.title for listing in code.listings[:4]] == ["ttir", "ttgir", "llir", "ptx"]
    machine_code = [listing for listing in code.listings if listing.title == "machine code"]
    assert not machine_code or machine_code[0].mix[wanted] > 0


def test_code_of_what_it_does_not_serve() -> None:
    backend = backend_named("triton")
    assert backend.code("", Request(sk.Block(16, 1), SHAPE, BF16, "cuda"), 128, "sm_80") is None
    assert backend.code("", Request(sk.Block(64, 64), SHAPE, BF16, "cpu"), 128, None) is None
    with pytest.raises(UnreadableError, match="expected sm_80 or newer, got sm_75"):
        backend.code("", Request(sk.Block(64, 64), SHAPE, BF16, "cuda"), 128, "sm_75")
