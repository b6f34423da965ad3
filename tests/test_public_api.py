"""The public names are a contract: they exist, are documented, and take what the documentation says."""

import dataclasses
import inspect

import pytest
import torch

import sparsekern as sk

SIGNATURES = {
    "NM": "(n, m, rows=1)",
    "make_mask": "(weight, granularity, sparsity=None, criterion='magnitude')",
    "pack": "(weight, granularity, mask=None)",
    "linear": "(x, packed, bias=None, activation=None)",
    "conv2d": "(x, packed, bias=None, stride=1, padding=0, dilation=1, groups=1, activation=None)",
    "conv_from_linear": "(linear, in_shape, flatten='nchw')",
    "sparsify_": (
        "(model, config, filter_fn=None, example_inputs=None, calibration=None, *, fold_batch_norm=False, "
        "fuse_activations=False)"
    ),
    "densify_": "(model)",
    "save": "(model, path)",
    "load_": "(model, path)",
    "kernels": "()",
    "Unstructured": "()",
    "Channel": "()",
    "Block": "(rows, cols)",
    "Sparse": "(granularity, sparsity=None, criterion='magnitude', only_if_faster=True)",
    "SparseLinear": "(packed, bias=None, activation=None, name='SparseLinear')",
    "SparseLinear.from_dense": "(linear, granularity, sparsity=None, mask=None)",
    "SparseConv2d": (
        "(packed, bias=None, stride=1, padding=0, dilation=1, groups=1, padding_mode='zeros', activation=None, "
        "name='SparseConv2d')"
    ),
    "SparseConv2d.from_dense": "(conv, granularity, sparsity=None, mask=None)",
    "JoinedLinear": "(linear, sizes)",
    "join": "(layers)",
    "Target.detect": "()",
}


def lookup(name: str) -> object:
    value: object = sk
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    signature = inspect.signature(lookup(name))  # type: ignore[arg-type]
    bare = signature.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == SIGNATURES[name]


def test_every_public_name_exists_and_is_documented() -> None:
    assert len(set(sk.__all__)) == len(sk.__all__)
    for name in sk.__all__:
        assert inspect.getdoc(getattr(sk, name)), name
    assert {name.split(".")[0] for name in SIGNATURES} <= set(sk.__all__)


@pytest.mark.parametrize("make", [sk.Unstructured, sk.Channel, lambda: sk.Block(4, 1)])
def test_granularities_are_frozen_dataclasses(make: type) -> None:
    granularity = make()
    assert dataclasses.is_dataclass(granularity) and granularity == make() and hash(granularity) == hash(make())
    with pytest.raises(dataclasses.FrozenInstanceError):
        granularity.rows = 5


def test_a_packed_weight_has_the_promised_members() -> None:
    packed = sk.pack(torch.eye(4), sk.Block(2, 2))
    assert torch.equal(packed.to_dense(), torch.eye(4))
    assert packed.granularity == sk.Block(2, 2)
    assert packed.density == 0.5
    assert packed.nbytes == sum(t.nbytes for t in packed.parts.values())
    assert packed.verify() is None


def test_kernel_records_are_complete() -> None:
    records = sk.kernels()
    assert len({record.name for record in records}) == len(records)
    for record in records:
        assert all(getattr(record, f.name) not in ("", ()) for f in dataclasses.fields(record))
        assert record.takes and record.tokens
        assert record.runs_here in (True, False)
    target = sk.Target.detect()
    assert target.threads == torch.get_num_threads()
    assert not target.native or target.isa in target.isas
