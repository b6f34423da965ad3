"""Choosing a back end, and measuring what a layer costs."""

from pathlib import Path

import pytest
import torch

import sparsekern as sk
from sparsekern import plan
from sparsekern.plan import Request, backends, refusals, registry, select


def request(granularity: object, dtype: torch.dtype = torch.float32, device: str = "cpu", columns: int = 64) -> Request:
    return Request(granularity, (64, columns), dtype, device)  # type: ignore[arg-type]


@pytest.mark.needs_native
@pytest.mark.parametrize(
    "granularity",
    [
        *(sk.Block(rows, 1) for rows in (1, 3, 4, 8, 16, 17, 32, 48, 64)),
        *(sk.Block(5, 3), sk.Unstructured(), sk.NM(2, 4), sk.NM(3, 7), sk.NM(2, 4, 4), sk.NM(8, 16, 32)),
    ],
    ids=lambda g: g.label,
)
def test_native_kernels_serve_what_they_read_on_every_isa(granularity: object, isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        wanted = request(granularity, dtype)
        assert select(wanted).name == "cpu" and refusals(wanted) == {}
        for tokens in (0, 1, 2, 15, 16, 1000):
            name = select(wanted).kernel_name(wanted, tokens)
            (record,) = (record for record in sk.kernels() if record.name == name)
            assert str(dtype).removeprefix("torch.") in record.dtypes
            # Levels of bfloat16 leave float32 to the one below, and some bfloat16 too.
            of_bfloat16 = {"avx512_bf16": {isa, "avx512"}, "amx_bf16": {isa, "avx512_bf16", "avx512"}}
            assert record.isa in of_bfloat16.get(isa, {isa})
            assert tokens == 0 or record in select(wanted).candidates(wanted), "tune compares with it"


@pytest.mark.needs_native
@pytest.mark.parametrize(
    "wanted, reason",
    [
        (request(sk.Block(16, 1), torch.float16), "no kernel for torch.float16"),
        (request(sk.Block(16, 1), device="meta"), "weight is on meta"),
        (request(sk.Block(16, 1), columns=65_537), "more than 65536 block columns"),
        (request(sk.Unstructured(), columns=65_537), "more than 65536 block columns"),
    ],
)
def test_the_reference_serves_the_rest_and_says_why(wanted: Request, reason: str) -> None:
    assert select(wanted).name == "reference"
    assert refusals(wanted) == {"cpu": reason}
    assert select(wanted).kernel_name(wanted, 64) == f"reference_{wanted.granularity.kind}"


def test_without_back_ends_the_error_lists_the_reasons() -> None:
    del registry._BACKENDS["reference"]
    with pytest.raises(NotImplementedError, match=r"no back end for 16x1 torch.float16 on cpu \(cpu: "):
        select(request(sk.Block(16, 1), torch.float16))
    del registry._BACKENDS["cpu"]
    with pytest.raises(NotImplementedError, match="none registered"):
        select(request(sk.Block(16, 1)))


def test_the_kernel_table_is_that_of_the_back_ends() -> None:
    assert sk.kernels() == [record for backend in backends() for record in backend.kernels()]
    assert {record.backend for record in sk.kernels()} <= {backend.name for backend in backends()}
    assert all(record.runs_here for record in sk.kernels() if record.backend == "reference")


@pytest.mark.needs_native
def test_kernels_are_chosen_for_the_tokens_that_their_records_say(isa: str) -> None:
    facts = Path("/proc/cpuinfo")
    cpuinfo = facts.read_text() if facts.exists() else ""
    for record in sk.kernels():
        if record.isa == isa and record.op.endswith("linear"):
            dtype = torch.bfloat16 if record.dtypes == ("bfloat16",) else torch.float32
            wanted = request(sk.NM(2, 4) if record.granularity == "nm" else sk.Block(record.rows, 1), dtype)
            last = record.max_tokens or 10_000
            chosen = {select(wanted).kernel_name(wanted, n) for n in (record.min_tokens, last)}
            if record.cores == "amd" and "AuthenticAMD" not in cpuinfo:
                assert record.name not in chosen
                continue
            assert chosen == {record.name}
            if record.max_tokens is not None:
                assert select(wanted).kernel_name(wanted, last + 1) != record.name


def test_numbers_of_a_record_for_people() -> None:
    def record(**numbers: object) -> plan.KernelRecord:
        return plan.KernelRecord("k", "b", "linear", "block", ("float32",), "avx2", True, **numbers)  # type: ignore[arg-type]

    assert [record(rows=16).takes, record(rows=8, multiple=False).takes, record().takes] == [
        "16n x c",
        "8 x c",
        "block (any)",
    ]
    ranges = [(0, None), (16, None), (1, 1), (2, 15)]
    assert [record(min_tokens=a, max_tokens=b).tokens for a, b in ranges] == ["any", ">= 16", "1", "2 to 15"]
    assert record(rows=16).covers(record(rows=32)) and not record(rows=32).covers(record(rows=16))
    assert [record().machines, record(cores="amd").machines] == ["avx2", "avx2 (AMD)"]
    assert record(rows=8).covers(record(rows=8, multiple=False))
    assert not record(rows=8, multiple=False).covers(record(rows=8))


@pytest.mark.needs_native
def test_the_target_follows_the_isa(isa: str) -> None:
    target = sk.Target.detect()
    assert target.isa == isa and isa in target.isas and target.native and target.cpu and target.cores >= 1


def test_plan_exports_what_it_promises() -> None:
    assert all(hasattr(plan, name) for name in plan.__all__)


def test_a_back_end_without_a_choice_of_kernels_runs_its_own_and_refuses_a_name() -> None:
    weight, x = sk.pack(torch.randn(8, 6), sk.Channel()), torch.randn(3, 6)
    rows = select(Request(weight.granularity, weight.shape, torch.float32, "cpu"))
    arguments = (x, weight.granularity, weight.shape, weight.tensors, None, "none")
    assert rows.candidates(Request(weight.granularity, weight.shape, torch.float32, "cpu")) == []
    assert torch.equal(rows.linear_by("", *arguments), rows.linear(*arguments))
    with pytest.raises(ValueError, match=r"rows: expected an empty name.*got 'fast'"):
        rows.linear_by("fast", *arguments)
