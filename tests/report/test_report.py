"""The report: verdicts, totals, table and JSON."""

import dataclasses

import pytest

from sparsekern.report import LayerReport, Report, text_table, times

FAST = LayerReport("encoder.query", (384, 384), True, granularity="16x1", density=0.25, kernel="outputs_r16_avx2",
                   calls=1, tokens=1024, dense_us=1700.4, sparse_us=548.5, speedup=3.1, spread=0.123, rounds=30,
                   bytes_before=589_824, bytes_after=150_000)  # fmt: skip
SLOW = dataclasses.replace(FAST, layer="encoder.key", sparse=False, reason="0.93x at this size", sparse_us=1828.4,
                           speedup=0.93, spread=0.02, bytes_after=589_824)  # fmt: skip
TIED = LayerReport("head", (1000, 384), False, "weight shared with embeddings.word_embeddings",
                   bytes_before=1_536_000, bytes_after=1_536_000)  # fmt: skip
BLIND = LayerReport("pooler", (384, 384), True, "not measured: pass example_inputs", "8x1", 0.5, "tokens_r8_avx2",
                    bytes_before=589_824, bytes_after=310_000)  # fmt: skip
REPORT = Report((FAST, SLOW, TIED, BLIND), "a processor, avx2, 2 threads")


def test_verdicts() -> None:
    assert [row.verdict for row in REPORT] == [
        "16x1, 75 %, outputs_r16_avx2, 3.1x",
        "kept dense: 0.93x at this size",
        "kept dense: weight shared with embeddings.word_embeddings",
        "8x1, 50 %, tokens_r8_avx2, not measured: pass example_inputs",
    ]


@pytest.mark.parametrize(
    ("speedup", "spread", "gain", "pays"),
    [
        (3.1, 0.12, "3.1x", True),
        (1.1, 0.09, "1.10x", True),
        (1.1, 0.11, "no clear gain (1.10x, spread 0.11)", False),
        (0.998, 0.03, "no clear gain (1.00x, spread 0.03)", False),
        (0.93, 0.03, "0.93x", False),
        (2.0, 0.6, "2.0x (noisy: measure again on an idle machine)", True),
        (1.2, 0.5, "no clear gain (1.20x, spread 0.50; noisy: measure again on an idle machine)", False),
        (131.0, 1.0, "131.0x (noisy: measure again on an idle machine)", True),
    ],
)
def test_a_speed_up_counts_for_more_than_its_spread(speedup: float, spread: float, gain: str, pays: bool) -> None:
    row = dataclasses.replace(FAST, speedup=speedup, spread=spread)
    assert (row.gain, row.pays, row.noisy) == (gain, pays, "noisy" in gain)


def test_without_a_measurement_nothing_is_gained() -> None:
    assert (BLIND.gain, BLIND.pays, BLIND.noisy) == ("", False, False)


@pytest.mark.parametrize(
    "ratio, text", [(0.926, "0.93x"), (1.004, "1.00x"), (1.949, "1.95x"), (3.14, "3.1x"), (12, "12.0x")]
)
def test_speed_ups_for_people(ratio: float, text: str) -> None:
    assert times(ratio) == text


def test_totals() -> None:
    assert (REPORT.sparse_layers, len(REPORT)) == (2, 4)
    assert REPORT.bytes_before == 589_824 * 3 + 1_536_000
    assert REPORT.bytes_after == 150_000 + 589_824 + 1_536_000 + 310_000
    # Only measured layers count, each as it is now.
    assert REPORT.us_before == pytest.approx(1700.4 * 2) and REPORT.us_after == pytest.approx(548.5 + 1700.4)
    assert REPORT.summary == (
        "2 sparse, 2 dense; weights 3.3 MB -> 2.6 MB; measured layers 3,401 -> 2,249 us (1.51x over eager PyTorch)"
    )
    assert Report((TIED,)).us_before is None and "measured" not in Report((TIED,)).summary
    assert Report(()).summary == "no nn.Linear or nn.Conv2d in this model"


def test_rows_by_name_and_place() -> None:
    assert REPORT["head"] is REPORT[2] is REPORT[-2] is TIED
    assert list(reversed(REPORT)) == [BLIND, TIED, SLOW, FAST]
    with pytest.raises(KeyError, match="tail"):
        REPORT["tail"]


def test_printing_gives_an_aligned_table() -> None:
    lines = str(REPORT).splitlines()
    assert lines[0].split() == ["layer", "shape", "tokens", "dense", "us", "sparse", "us", "spread", "verdict"]
    start = lines[0].index("verdict")
    assert [line[start:] for line in lines[2:6]] == [row.verdict for row in REPORT]
    assert lines[2].split()[:6] == ["encoder.query", "384x384", "1024", "1,700", "548", "0.12"]
    assert lines[4].split()[:3] == ["head", "1000x384", "kept"]
    assert lines[6:] == [REPORT.summary, "a processor, avx2, 2 threads"]
    assert str(Report(())) == "no nn.Linear or nn.Conv2d in this model"


def test_calls_and_small_times_are_shown() -> None:
    several = Report((dataclasses.replace(FAST, calls=3, tokens=96, dense_us=12.34, sparse_us=5.6),))
    assert "96 in 3 calls  12.3      5.6" in str(several)
    never = Report((dataclasses.replace(BLIND, calls=0, tokens=0),))
    assert str(never).splitlines()[2].split()[:4] == ["pooler", "384x384", "0", "8x1,"]


def test_reports_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAST.reason = ""  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.rows = ()  # type: ignore[misc]


def test_text_table() -> None:
    assert text_table(("a", "long name"), [("x", "1"), ("longer", "")]) == (
        "a       long name\n------  ---------\nx       1\nlonger"
    )
