"""Which kernel runs: measured, predicted, or the first line of the table."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsekern as sk
from sparsekern import plan
from sparsekern._native import native
from sparsekern.layouts import Granularity
from sparsekern.plan import Entry, HostPlan, Request, choose, host_key
from sparsekern.plan.rates import BUFFERS, Rates, lanes_of

pytestmark = pytest.mark.needs_native

BLOCKS, SHAPE, TOKENS = sk.Block(16, 1), (96, 64), 24
TWO_WIDTHS = [level for level in native.isa_supported() if len(lanes_of(level)) > 1] if native else []
Keep = Callable[..., None]


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    """Writes what another process would have measured, and makes this one read it anew."""
    monkeypatch.setenv("SPARSEKERN_CACHE", str(tmp_path))
    plan.renew()

    def write(*entries: Entry, rates: Rates | None = None) -> None:
        store = plan.Store()
        if rates is not None:
            store.keep_rates(host_key(native.isa()), rates.record())
        for entry in entries:
            store.keep(host_key(native.isa()), entry)
        assert store.trouble is None
        plan.renew()

    yield write
    plan.renew()


class Spy(TorchDispatchMode):
    """Notes which kernel each product is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op in (torch.ops.sparsekern.block_linear.default, torch.ops.sparsekern.nm_linear.default):
            self.kernels.append(args[-1])
        return op(*args, **(kwargs or {}))


def ran(layer: nn.Module, x: Tensor) -> str:
    """The kernel that a product is asked for; its result is checked."""
    with Spy() as spy, torch.no_grad():
        y = layer(x)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    (kernel,) = spy.kernels
    return kernel


def layer_of(granularity: Granularity = BLOCKS) -> sk.SparseLinear:
    return sk.SparseLinear.from_dense(nn.Linear(SHAPE[1], SHAPE[0]), granularity, 0.5)


def candidate(prefix: str, granularity: Granularity = BLOCKS) -> str:
    """The kernel of that orientation that serves a layer at the level in use."""
    request = Request(granularity, SHAPE, torch.float32, "cpu")
    (name,) = (r.name for r in plan.select(request).candidates(request) if r.name.startswith(prefix))
    return name


def slow_kernel() -> str:
    """One that serves the layer and that no rule would choose."""
    return candidate("few_r1")


def entry_of(**changes: Any) -> Entry:
    threads = torch.get_num_threads()
    entry = Entry("block(16,1)", "float32", *SHAPE, 0.5, TOKENS, threads, slow_kernel(), 1e-6, "first", 2e-6, 1e-6)
    return dataclasses.replace(entry, **changes)


def rates_for(**loads: float) -> Rates:
    """A host on which kernels of narrow or of wide vectors are far too slow."""
    lanes = lanes_of(native.isa())
    load = {n: loads.get(f"of_{n}", 2e9) for n in lanes}
    return Rates(dict.fromkeys(lanes, 4e9), load, 1e-9, dict.fromkeys(BUFFERS, 1e11), 1e10)


def test_an_untuned_host_leaves_the_choice_to_the_back_end(keep: Keep) -> None:
    assert ran(layer_of(), torch.randn(TOKENS, SHAPE[1])) == ""
    assert not plan.host_plan().tuned


def test_what_was_measured_runs_on_every_isa(keep: Keep, isa: str) -> None:
    keep(entry_of())
    layer, x = layer_of(), torch.randn(TOKENS, SHAPE[1])
    assert ran(layer, x) == slow_kernel()
    assert ran(layer, x.view(2, TOKENS // 2, -1).flatten(0, 1)) == slow_kernel()
    assert sk.linear(x, layer.packed).shape == (TOKENS, SHAPE[0])
    request = Request(layer.granularity, SHAPE, torch.float32, "cpu")
    assert plan.kernel_name(request, layer.values.numel(), TOKENS) == slow_kernel()


def test_n_m_has_a_choice_too(keep: Keep, isa: str) -> None:
    kernel = candidate("tokens_nm", sk.NM(2, 4))
    keep(entry_of(granularity="nm(2,4,1)", kernel=kernel))
    assert ran(layer_of(sk.NM(2, 4)), torch.randn(TOKENS, SHAPE[1])) == kernel


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({}, True),
        ({"out_features": 140, "in_features": 45}, True),
        ({"out_features": 200}, False),
        ({"density": 0.4}, True),
        ({"density": 0.25}, False),
        ({"tokens": TOKENS + 1}, False),
        ({"threads": 77}, True),
        ({"dtype": "bfloat16"}, False),
        ({"granularity": "block(16,2)"}, False),
        ({"kernel": "a_kernel_of_another_build"}, False),
    ],
)
def test_only_near_cases_count(keep: Keep, change: dict[str, Any], counts: bool) -> None:
    keep(entry_of(**change))
    assert ran(layer_of(), torch.randn(TOKENS, SHAPE[1])) == (slow_kernel() if counts else "")


def test_many_tokens_may_differ_a_little(keep: Keep) -> None:
    keep(entry_of(tokens=128))
    layer = layer_of()
    kernels = [ran(layer, torch.randn(tokens, SHAPE[1])) for tokens in (100, 120, 128, 140, 150)]
    assert kernels == ["", slow_kernel(), slow_kernel(), slow_kernel(), ""]


def test_the_nearest_of_several_counts(keep: Keep) -> None:
    other = candidate("vector_r16")
    keep(entry_of(out_features=120), entry_of(kernel=other))
    assert ran(layer_of(), torch.randn(TOKENS, SHAPE[1])) == other


@pytest.mark.parametrize("isa", TWO_WIDTHS, indirect=True)
def test_the_model_ranks_where_nothing_was_measured(keep: Keep, isa: str) -> None:
    """Blocks of 4 rows have kernels of narrow and of wide vectors; the table prefers wide ones for many tokens."""
    four, x = sk.Block(4, 1), torch.randn(144, SHAPE[1])
    lanes = {record.name: record.tile.lanes for record in sk.kernels() if record.tile is not None}
    keep(rates=rates_for(of_4=1e8))
    assert ran(layer_of(four), x) == ""  # as the table has it: by tokens
    keep(rates=rates_for(of_8=1e8, of_16=1e8))
    assert lanes[ran(layer_of(four), x)] == 4
    keep(entry_of(tokens=144, granularity="block(4,1)"), rates=rates_for(of_8=1e8, of_16=1e8))
    assert ran(layer_of(four), x) == slow_kernel()  # measured: the model does not ask


def test_the_model_s_choice_does_not_depend_on_threads(keep: Keep, threads: None) -> None:
    keep(rates=rates_for(of_16=1e8))
    layer, found = layer_of(), set()
    outputs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        x = torch.linspace(-1, 1, 300 * SHAPE[1]).view(300, -1)
        found.add(ran(layer, x))
        outputs.append(layer(x))
    assert len(found) == 1 and all(torch.equal(y, outputs[0]) for y in outputs)


def test_what_was_measured_decides_for_any_number_of_threads(keep: Keep, threads: None) -> None:
    keep(entry_of(threads=7, kernel=candidate("vector_r16")), entry_of(threads=2), entry_of(threads=3, kernel="gone"))
    layer, x = layer_of(), torch.randn(TOKENS, SHAPE[1])
    outputs = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        plan.renew()
        assert ran(layer, x) == slow_kernel(), "the one that was measured with the fewest"
        outputs.append(layer(x))
    assert all(torch.equal(y, outputs[0]) for y in outputs)


@pytest.mark.parametrize("measured", [257, 460, 513, 577, 1025])
def test_a_case_of_many_tokens_decides_for_itself_and_those_within_a_tenth(keep: Keep, measured: int) -> None:
    keep(entry_of(tokens=measured))
    layer, request = layer_of(), Request(BLOCKS, SHAPE, torch.float32, "cpu")
    host, backend, stored = plan.host_plan(), plan.select(request), layer.values.numel()
    for tokens in range(math.ceil(measured / 1.1), int(measured * 1.1) + 1):
        assert host.choose(backend, request, stored, tokens).kernel == slow_kernel(), tokens
    for tokens in (measured // 2, measured * 2):
        assert host.choose(backend, request, stored, tokens).why != "measured"
    assert plan.kernel_name(request, stored, measured) == ran(layer, torch.randn(measured, SHAPE[1])) == slow_kernel()


def test_what_is_remembered_is_bounded(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "MOST_CHOSEN", 3)
    keep(entry_of())
    layer = layer_of()
    for tokens in range(1, 9):
        layer(torch.randn(tokens, SHAPE[1]))
        assert 1 <= len(plan.host_plan().chosen) <= 3
    assert ran(layer, torch.randn(TOKENS, SHAPE[1])) == slow_kernel()


def test_a_refresh_leaves_what_other_threads_hold_as_it_was(keep: Keep) -> None:
    keep(entry_of(), rates=rates_for())
    layer, x, host = layer_of(), torch.randn(TOKENS, SHAPE[1]), plan.host_plan()
    layer(x)
    rates, entries, chosen = host.rates, host.entries, host.chosen
    host.store.forget(host_key(native.isa()))
    host.refresh()
    assert rates and entries and list(chosen.values()) == [slow_kernel()]
    assert not (host.rates or host.entries or host.chosen or host.tuned)


def test_each_product_is_decided_once(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(entry_of())
    layer, x = layer_of(), torch.randn(TOKENS, SHAPE[1])
    layer(x)
    monkeypatch.setattr(HostPlan, "choose", lambda *_: pytest.fail("decided again"))
    monkeypatch.setattr(plan.Store, "read", lambda *_: pytest.fail("read again"))
    assert ran(layer, x) == slow_kernel()


def test_what_was_measured_with_another_instruction_set_is_not_used(keep: Keep) -> None:
    keep(entry_of())
    layer, x, before = layer_of(), torch.randn(TOKENS, SHAPE[1]), native.isa()
    if before == "portable":
        pytest.skip("there is no lower level")
    native.set_isa("portable")
    try:
        assert ran(layer, x) == ""
    finally:
        native.set_isa(before)
    assert ran(layer, x) == slow_kernel()


@pytest.mark.parametrize("latency", ["short", 10**400, math.inf, math.nan, 0, 1e-300])
def test_rates_that_make_no_sense_are_trouble_and_no_error(keep: Keep, latency: Any) -> None:
    record = {**rates_for().record(), "latency": latency}
    with pytest.raises(ValueError, match=r"rates: expected a record of plan\.Rates.*tune again"):
        Rates.of_record(record, native.isa())
    plan.Store().keep_rates(host_key(native.isa()), record)
    plan.renew()
    assert ran(layer_of(), torch.randn(TOKENS, SHAPE[1])) == ""
    assert "tune again" in str(plan.host_plan().store.trouble)


def test_no_tokens_need_no_kernel(keep: Keep) -> None:
    keep(entry_of(), rates=rates_for())
    assert layer_of()(torch.randn(0, SHAPE[1])).shape == (0, SHAPE[0])


def test_gradients_come_out_right(keep: Keep) -> None:
    keep(entry_of())
    layer = layer_of()
    layer = sk.SparseLinear(layer.packed, layer.bias, "gelu")
    layer.values.requires_grad_()
    x = torch.randn(TOKENS, SHAPE[1], requires_grad=True)
    dense, twin = layer.to_dense(), x.detach().clone().requires_grad_()
    layer(x).sum().backward()
    dense(twin).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-4)


# ---- compilers -----------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def names_in(graph: torch.fx.Graph) -> list[str]:
    return [node.args[-1] for node in graph.nodes if "block_linear" in str(node.target)]


def test_compiled_graphs_hold_the_name_for_static_shapes_only(keep: Keep, fresh_compiler: None) -> None:
    keep(entry_of())
    graphs: list[list[str]] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(names_in(module.graph))
        return module

    layer = layer_of()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for tokens in (TOKENS, 30, 31):  # the second number of tokens makes the graph dynamic
        x = torch.randn(tokens, SHAPE[1])
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    assert graphs == [[slow_kernel()], [""]]


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_run_anywhere(keep: Keep, fresh_compiler: None, strict: bool) -> None:
    keep(entry_of())
    x = torch.randn(TOKENS, SHAPE[1])
    program = torch.export.export(layer_of().eval(), (x,), strict=strict)
    assert names_in(program.graph) == [""]


# ---- numbers of tokens ---------------------------------------------------------------------------


def test_few_tokens_stand_for_themselves_and_many_for_their_like() -> None:
    assert [choose.alike(n) for n in range(257)] == [(n, n) for n in range(257)]
    found = {choose.alike(n) for n in range(257, 100_000)}
    assert len(found) < 80
    assert all(set(map(choose.alike, ends)) == {ends} for ends in found)
    for n in range(257, 100_000):
        fewest, most = choose.alike(n)
        assert fewest <= n <= most <= 1.125 * fewest
    assert [choose.alike(n)[1] for n in (384, 512, 1024, 4096)] == [384, 512, 1024, 4096]
