"""``Sparse`` and name patterns."""

import dataclasses

import pytest

import sparsekern as sk
from sparsekern.nn.config import resolve

HALF = sk.Sparse(sk.Block(16, 1), 0.5)
FINE = sk.Sparse(sk.Block(4, 1), 0.75)
LAYERS = [("encoder.0.query",), ("encoder.0.dense", "tied.dense"), ("head",)]


def test_sparse_is_a_frozen_value() -> None:
    assert HALF == sk.Sparse(sk.Block(16, 1), 0.5) and hash(HALF) == hash(sk.Sparse(sk.Block(16, 1), 0.5))
    assert (HALF.criterion, HALF.only_if_faster) == ("magnitude", True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        HALF.sparsity = 0.9  # type: ignore[misc]


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (("16x1", 0.5), TypeError, r"expected a granularity such as Block\(16, 1\), got '16x1'"),
        ((sk.Block, 0.5), TypeError, "expected a granularity"),
        ((sk.Block(16, 1), 1.0), ValueError, r"sparsity: expected a share of zeros in \[0, 1\), got 1.0"),
        ((sk.Block(16, 1), -0.1), ValueError, "got -0.1"),
        ((sk.Block(16, 1), float("nan")), ValueError, "got nan"),
        ((sk.Block(16, 1), "0.5"), ValueError, "got '0.5'"),
        ((sk.Block(16, 1), 0.5, "luck"), ValueError, "expected a criterion of magnitude, got 'luck'"),
        ((sk.Block(16, 1), 0.5, "magnitude", 1), TypeError, "only_if_faster to be True or False, got 1"),
    ],
)
def test_sparse_refuses(arguments: tuple[object, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=rf"^Sparse: .*{text}"):
        sk.Sparse(*arguments)  # type: ignore[arg-type]


def test_one_config_is_for_all_layers() -> None:
    assert resolve(HALF, LAYERS) == [(HALF, "")] * 3


def test_the_first_pattern_that_matches_counts() -> None:
    assert [c for c, _ in resolve({"*.query": FINE, "encoder.*": HALF}, LAYERS)] == [FINE, HALF, None]
    assert [c for c, _ in resolve({"encoder.*": HALF, "*.query": FINE}, LAYERS)] == [HALF, HALF, None]
    assert [c for c, _ in resolve({"head": None, "*": FINE}, LAYERS)] == [FINE, FINE, None]
    assert [c for c, _ in resolve({"encoder.[0-9].q*": HALF, "?ead": FINE}, LAYERS)] == [HALF, None, FINE]


def test_a_shared_layer_is_matched_by_any_of_its_names() -> None:
    assert [c for c, _ in resolve({"tied.*": FINE, "*": HALF}, LAYERS)] == [HALF, FINE, HALF]


def test_reasons_to_stay_dense() -> None:
    reasons = [reason for _, reason in resolve({"head": None, "*.query": HALF}, LAYERS)]
    assert reasons == ["", "no pattern of the config matches", "config says so ('head': None)"]


def test_a_pattern_that_matches_nothing_is_an_error_with_a_hint() -> None:
    with pytest.raises(
        ValueError, match=r"^config: 'encoder.0.kwery' matches no Linear or Conv2d layer.*'encoder.0.query'"
    ):
        resolve({"encoder.0.kwery": HALF, "*": FINE}, LAYERS)
    with pytest.raises(ValueError, match=r"'Encoder\.\*' matches no"):
        resolve({"*": HALF, "Encoder.*": None}, LAYERS)
    with pytest.raises(ValueError, match=r"'x' matches no Linear or Conv2d layer of the model, which has none"):
        resolve({"x": HALF}, [])


@pytest.mark.parametrize(
    "config, text",
    [
        (sk.NM(2, 4), r"is a granularity and no configuration; write Sparse\(NM\(n=2, m=4, rows=1\)\)"),
        (sk.Block(16, 1), r"says nothing about sparsity; write Sparse\(Block\(rows=16, cols=1\), sparsity\)"),
        (0.5, "expected a Sparse or a dict of name pattern to Sparse or None, got 0.5"),
        (None, "got None"),
        ([HALF], "expected a Sparse or a dict"),
        ({"*": 0.5}, r"config\['\*'\]: expected a Sparse or None \(stay dense\), got 0.5"),
        ({"*": sk.Block(16, 1)}, r"config\['\*'\]: expected a Sparse or None"),
        ({0: HALF}, "expected name patterns as keys, got 0"),
    ],
)
def test_a_config_of_another_type(config: object, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        resolve(config, LAYERS)  # type: ignore[arg-type]
