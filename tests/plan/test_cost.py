"""The cost model: what it must get right whatever the host."""

import dataclasses

import pytest

import sparsekern as sk
from sparsekern._native import native
from sparsekern.plan import Rates, Tile, Work, cost, measure_rates, predict, rates as rates_module
from sparsekern.plan.registry import FAMILIES

GHZ = 3e9
# The tiles of blocks of 16 rows with AVX-512: two vectors of 8 outputs, or three of 16 tokens.
OUTPUTS, TOKENS = Tile("outputs", 16, 12, 8), Tile("tokens", 8, 48, 16)
SINGLE, VECTOR = Tile("single", 1, 96, 16), Tile("vector", 16, 1, 8)
TILES = [OUTPUTS, TOKENS, SINGLE, VECTOR]
every_tile = pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.family)


def host(loads_256: float = 2, loads_512: float = 1, fma_512: float = 1) -> Rates:
    """A host that starts so many loads and multiply-adds a cycle."""
    return Rates(
        multiply_adds={4: 2 * GHZ, 8: 2 * GHZ, 16: fma_512 * GHZ},
        loads={4: loads_256 * GHZ, 8: loads_256 * GHZ, 16: loads_512 * GHZ},
        latency=4 / GHZ,
        bandwidth={32 * 1024: 200e9, 512 * 1024: 100e9, 64 * 1024**2: 25e9},
        widened=10e9,
    )


WORK = Work(out_features=3072, in_features=768, density=0.25, tokens=144)


def seconds(tile: Tile, rates: Rates, work: Work = WORK) -> float:
    return predict(tile, work, rates).seconds


def test_dear_loads_of_256_bits_make_16_rows_go_by_tokens() -> None:
    assert seconds(TOKENS, host(loads_256=0.5)) < 0.6 * seconds(OUTPUTS, host(loads_256=0.5))


def test_dear_loads_of_512_bits_make_16_rows_go_by_outputs() -> None:
    assert seconds(OUTPUTS, host(loads_512=0.25)) < 0.8 * seconds(TOKENS, host(loads_512=0.25))


def test_two_wide_multiply_adds_a_cycle_make_16_rows_go_by_tokens() -> None:
    assert seconds(TOKENS, host(fma_512=2)) < 0.8 * seconds(OUTPUTS, host(fma_512=2))


def test_tokens_that_leave_a_vector_half_empty_go_by_outputs() -> None:
    few = dataclasses.replace(WORK, tokens=24)
    assert seconds(OUTPUTS, host(), few) < 0.9 * seconds(TOKENS, host(), few)


@every_tile
@pytest.mark.parametrize("name", ["density", "tokens", "out_features", "in_features"])
def test_more_work_never_takes_less_time(tile: Tile, name: str) -> None:
    factors = (0.1, 0.2, 0.5, 1, 1.5, 2, 4)
    kind = type(getattr(WORK, name))
    works = [dataclasses.replace(WORK, **{name: kind(getattr(WORK, name) * factor)}) for factor in factors]
    times = [seconds(tile, host(), work) for work in works]
    assert times == sorted(times)


@every_tile
def test_no_host_beats_its_multiply_adds_and_its_memory(tile: Tile) -> None:
    for tokens in (1, 7, 144):
        work = dataclasses.replace(WORK, tokens=tokens)
        found = seconds(tile, host(), work)
        assert found > work.stored * tokens / (16 * GHZ) and found > 4 * work.stored / 25e9


@pytest.mark.parametrize(
    ("tile", "rates", "work", "bound"),
    [
        (TOKENS, host(), dataclasses.replace(WORK, density=1.0), "multiply-adds"),
        (SINGLE, host(), WORK, "loads"),
        (TOKENS, dataclasses.replace(host(), bandwidth={1: 1e9}), dataclasses.replace(WORK, density=1.0), "L2"),
        (VECTOR, host(), Work(8192, 8192, 0.5, 1), "memory"),
        (OUTPUTS, host(), dataclasses.replace(WORK, density=0.001), "moving"),
        (OUTPUTS, host(), Work(16, 16, 0.5, 1), "call"),
        (OUTPUTS, host(), Work(30000, 4, 0.25, 2), "tiles"),
        (OUTPUTS, host(), Work(2048, 2048, 0.5, 2, bfloat16=True), "widening"),
    ],
)
def test_names_what_most_of_the_time_goes_to(tile: Tile, rates: Rates, work: Work, bound: str) -> None:
    assert predict(tile, work, rates).bound == bound


@pytest.mark.needs_native
def test_only_kernels_whose_cost_is_known_are_ranked() -> None:
    products = [k for k in sk.kernels() if k.backend == "cpu" and k.op.endswith("_linear")]
    unknown = {k.name for k in products if k.tile is None}
    assert unknown == {k.name for k in products if k.name.startswith(("dots", "pairs", "tiles"))}
    assert {k.tile.family for k in products if k.tile is not None} == set(FAMILIES)


@every_tile
@pytest.mark.parametrize("tokens", [1, 16, 47, 48, 49, 100, 384])
def test_panels_hold_all_tokens(tile: Tile, tokens: int) -> None:
    panels = list(cost._panels(tile, tokens))
    quantum = tile.lanes if tile.family in ("tokens", "single") else 1
    assert sum(count * size for count, size in panels) == -(-tokens // quantum) * quantum
    assert all(0 < size <= tile.tokens for _, size in panels)


def test_widening_costs_time_and_halves_what_memory_reads() -> None:
    narrow, wide = Work(8192, 8192, 0.5, 1, bfloat16=True), Work(8192, 8192, 0.5, 1)
    endless = dataclasses.replace(host(), widened=1e18)
    assert seconds(VECTOR, endless, narrow) < 0.6 * seconds(VECTOR, endless, wide)
    assert seconds(VECTOR, host(), narrow) > seconds(VECTOR, endless, narrow) + narrow.stored / 10e9


# ---- the rates -----------------------------------------------------------------------------------


def test_bandwidth_is_that_of_the_least_buffer_that_holds_it() -> None:
    assert [host().read(size) for size in (1, 32 * 1024, 40_000, 1e9)] == [200e9, 200e9, 100e9, 25e9]


def test_rates_come_back_from_their_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "lanes_of", lambda isa: {4, 8, 16})
    assert Rates.of_record(host().record(), "avx512") == host()


@pytest.mark.parametrize(
    "change", [{"loads": {}}, {"latency": 0}, {"latency": None}, {"bandwidth": {}}, {"loads": 5}, {"loads": {"4": 1.0}}]
)
def test_other_records_are_refused(change: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "lanes_of", lambda isa: {4, 8, 16})
    with pytest.raises(ValueError, match=r"^rates: expected a record of plan.Rates, got .*; tune again"):
        Rates.of_record({**host().record(), **change}, "avx512")


@pytest.mark.needs_native
def test_the_rates_of_this_host(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "SECONDS", 0.01)
    found = measure_rates()
    assert Rates.of_record(found.record(), isa) == found
    for rate in found.multiply_adds.values():
        assert 1e8 < rate < 1e11
        # A chain of them is no faster than one after another.
        assert 1 / rate < found.latency * 1.5
    assert found.latency < 1e-7 and min(found.bandwidth.values()) > 1e8 and found.widened > 1e8


@pytest.mark.needs_native
def test_widths_that_the_level_lacks_are_refused(isa: str) -> None:
    for lanes in {4, 8, 16, 5} - rates_module.lanes_of(isa):
        with pytest.raises(ValueError, match=f"lanes: expected .* got {lanes}"):
            native.multiply_adds_a_second(lanes, 0.001)
