"""Arguments that sparsekern::block_linear must refuse: an exception with a message, never a crash."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsekern import _native
from sparsekern.layouts import Block, pack
from sparsekern.prune import make_mask

if _native.native is None:
    pytest.skip(f"no native kernels: {_native.failure}", allow_module_level=True)


def packed(rows: int, cols: int) -> dict[str, Tensor]:
    weight, block = torch.randn(40, 30), Block(rows, cols)
    return pack(weight, block, make_mask(weight, block, 0.5)).parts


def arguments() -> dict[str, object]:
    return {
        "x": torch.randn(5, 30),
        **packed(16, 2),
        "bias": torch.randn(40),
        "out_features": 40,
        "in_features": 30,
        "activation": "none",
        "kernel": "",
    }


def misplaced(t: Tensor) -> Tensor:
    """The same numbers at an odd address."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


SLOW_DIM_FIRST = (
    "values",
    lambda a: a["values"].transpose(1, 2).contiguous().transpose(1, 2),
)
MISTAKES = [
    ("x", lambda a: a["x"].double(), "an input of float32"),
    ("x", lambda a: a["x"].bfloat16(), "an input of float32"),
    ("x", lambda a: a["x"][:, :-1], r"expected an input \[\.\.\., 30\]"),
    ("x", lambda a: torch.tensor(1.0), r"expected an input \[\.\.\., 30\]"),
    ("values", lambda a: a["values"].double(), "float32 or bfloat16 values"),
    ("values", lambda a: a["values"].flatten(1), "values"),
    (*SLOW_DIM_FIRST, "contiguous float32 values"),
    ("values", lambda a: a["values"][:-1], "columns|offsets"),
    ("values", lambda a: a["values"][:, :0], "sizes > 0 that fit"),
    ("values", lambda a: a["values"][:, :, :0], "sizes > 0 that fit"),
    ("columns", lambda a: a["columns"].int(), "uint8 columns"),
    ("columns", lambda a: a["columns"][:-1], "uint8 columns"),
    ("columns", lambda a: a["columns"].flatten(), "uint8 columns"),
    ("columns", lambda a: a["columns"].T.contiguous().T, "uint8 columns"),
    ("columns", lambda a: misplaced(a["columns"]), "even address"),
    ("offsets", lambda a: a["offsets"].long(), r"int32 offsets \[4\]"),
    ("offsets", lambda a: a["offsets"][:-1], r"int32 offsets \[4\]"),
    ("offsets", lambda a: torch.cat([a["offsets"], a["offsets"][-1:]]), r"int32 offsets \[4\]"),
    ("offsets", lambda a: a["offsets"].repeat_interleave(2)[::2], r"int32 offsets \[4\]"),
    ("offsets", lambda a: a["offsets"] + 1, "expected the number of blocks"),
    ("offsets", lambda a: a["offsets"] - 1, "expected the number of blocks"),
    ("offsets", lambda a: a["offsets"] * 0, "expected the number of blocks"),
    ("bias", lambda a: a["bias"].double(), "float32 bias"),
    ("bias", lambda a: a["bias"][:-1], r"bias \[40\]"),
    ("bias", lambda a: a["bias"][None], r"bias \[40\]"),
    ("out_features", lambda a: 65, "offsets"),
    ("out_features", lambda a: 2**40, "sizes > 0 that fit"),
    ("out_features", lambda a: 2**63 - 1, "sizes > 0 that fit"),
    ("out_features", lambda a: 0, "sizes > 0 that fit"),
    ("out_features", lambda a: -5, "sizes > 0 that fit"),
    ("in_features", lambda a: 31, r"expected an input \[\.\.\., 31\]"),
    ("in_features", lambda a: 0, "sizes > 0 that fit"),
    ("in_features", lambda a: -30, "sizes > 0 that fit"),
    ("activation", lambda a: "tanh", "relu, gelu, silu, got 'tanh'"),
    ("activation", lambda a: "", "expected an activation"),
    ("kernel", lambda a: "outputs_r16", "no kernel named 'outputs_r16'"),
    ("kernel", lambda a: "tokens_r8_portable", "does not take blocks of 16 rows"),
]


def case(mistake: tuple[str, object, str]) -> object:
    return pytest.param(*mistake, id=f"{mistake[0]}: {mistake[2]}")


@pytest.mark.parametrize(("name", "change", "message"), [case(m) for m in MISTAKES])
def test_bad_arguments_raise(name: str, change: object, message: str) -> None:
    args = arguments()
    torch.ops.sparsekern.block_linear(**args)  # as they are, they are right
    args[name] = change(args)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparsekern.block_linear(**args)


@pytest.mark.parametrize("name", ["x", "values", "columns", "offsets", "bias"])
def test_a_tensor_on_another_device_raises(name: str) -> None:
    """One on meta sends the whole call to the fake implementation, whose result has no numbers in it."""
    args = arguments()
    args[name] = args[name].to("meta")
    with pytest.raises(TypeError, match=r"^sparsekern::block_linear: expected .* on (cpu|meta) like the weight"):
        torch.ops.sparsekern.block_linear(**args)


@pytest.mark.parametrize("cols", [2**33, 2**60])
def test_a_weight_without_blocks_that_claims_huge_ones_raises(cols: int) -> None:
    values, columns = torch.empty(0, cols, 4), torch.empty(0, 2, dtype=torch.uint8)
    args = {**arguments(), "values": values, "columns": columns, "offsets": torch.zeros(11, dtype=torch.int32)}
    with pytest.raises(RuntimeError, match="sizes > 0 that fit the weight, got blocks of 4 x"):
        torch.ops.sparsekern.block_linear(**args)


def test_a_kernel_that_takes_other_blocks_raises() -> None:
    for kernel in ("outputs_r16_portable", "tokens_r4_portable", "tokens_nm_portable"):
        args = {**arguments(), **packed(5, 2), "kernel": kernel}
        with pytest.raises(RuntimeError, match=f"'{kernel}' .* does not take blocks of 5 rows"):
            torch.ops.sparsekern.block_linear(**args)


def test_kernels_of_a_level_that_this_cpu_lacks_raise() -> None:
    absent = [record["name"] for record in _native.native.kernels() if not record["runs_here"]]
    if not absent:
        pytest.skip("this CPU runs every kernel")
    for name in absent:
        with pytest.raises(RuntimeError, match="does not run on this CPU"):
            torch.ops.sparsekern.block_linear(**{**arguments(), "kernel": name})


def test_matrices_of_more_than_65536_block_columns_raise() -> None:
    """Their columns are stored in 32 bits, which these kernels do not read."""
    parts = Block(16, 1).pack(torch.randn(16, 65537), torch.ones(16, 65537, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="uint8 columns"):
        torch.ops.sparsekern.block_linear(torch.randn(2, 65537), *parts.values(), None, 16, 65537, "none", "")
