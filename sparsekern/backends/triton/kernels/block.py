"""Products with ``Block(r, c)``, whose packed tensors are read as they are (docs/formats.md).

The blocks of a block row lie one after another, ``[blocks, c, r]``, and so are one matrix ``[stored inputs, r]`` in
memory. A program walks down that matrix in steps of its own choice, whatever ``c`` is, and fetches the activations that
belong to it: ``c`` neighbouring inputs for each block. The caller pads the activations to whole blocks, because a bound
within a block would make every one of their loads a load of single numbers.

**The columns are fetched one step ahead.** Triton's pipeliner lets an address wait for what it depends on by spending
stages on it: with int32 columns loaded in the step that uses them, four stages hold one pair of tiles instead of three
(sm_80). Loaded as the last statement of the step before, they are a value that the loop carries, and every stage holds
tiles. tests/triton/test_compiled.py measures both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import finish, multiply_add, row_and_token_tile


@triton.jit
def load_columns(columns, entry, mask):
    """Block columns of the stored blocks ``entry``, from either encoding (layouts/compressed.py)."""
    if columns.dtype.element_ty == tl.uint8:
        # Two bytes, the low one first, at an even address: a 16-bit number to any GPU.
        columns = columns.to(tl.pointer_type(tl.uint16))
    return tl.load(columns + entry, mask=mask, other=0).to(tl.int32)


@triton.jit
def _step_inputs(columns, first, end, COLS: tl.constexpr, STEP: tl.constexpr):
    """Inputs ``[STEP]`` of the stored inputs from ``first`` on; from ``end`` on any."""
    stored = first + tl.arange(0, STEP)
    if STEP <= COLS:
        column = load_columns(columns, first // COLS, first < end)
    else:
        column = load_columns(columns, stored // COLS, stored < end)
    RUN: tl.constexpr = STEP if STEP <= COLS else COLS
    # The hint is what the compiler cannot see, and without which it would load the activations number by number.
    # A remainder of the vector: that of the number ``first`` alone costs Triton 3.6 its stages.
    return tl.max_contiguous(tl.multiple_of(column * COLS + stored % COLS, RUN), RUN)


@triton.jit
def block_linear_kernel(
    x,
    values,
    columns,
    offsets,
    bias,
    y,
    tokens,
    outputs,
    x_stride,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of ``activation(x @ W.T + bias)``: ``TOKENS`` tokens by the ``ROWS`` outputs of a block row.

    Args:
        x: ``[tokens, inputs]``, inputs a multiple of ``COLS``, each token's inputs side by side.
        values: ``[blocks, COLS, ROWS]``.
        columns: ``[blocks, 2]`` uint8 or ``[blocks]`` int32.
        offsets: ``[ceil(outputs / ROWS) + 1]`` int32.
        bias: ``[outputs]``, read if ``HAS_BIAS``.
        y: ``[tokens, outputs]``, contiguous.
        tokens: number of tokens.
        outputs: number of outputs.
        x_stride: numbers from one token of ``x`` to the next.
        STEP: stored inputs that are multiplied at once; divides ``COLS`` or is a multiple of it.
    """
    row, tile = row_and_token_tile(tl.cdiv(outputs, ROWS), tl.cdiv(tokens, TOKENS))
    start = tl.load(offsets + row) * COLS
    end = tl.load(offsets + row + 1) * COLS
    first_token = tile * TOKENS

    token = tl.arange(0, TOKENS)
    stored = tl.arange(0, STEP)
    within = (first_token + token < tokens)[:, None]
    x_tile = x + first_token.to(tl.int64) * x_stride + token[:, None] * x_stride
    value_tile = values + start.to(tl.int64) * ROWS + stored[:, None] * ROWS + tl.arange(0, ROWS)[None, :]

    acc = tl.zeros((TOKENS, ROWS), tl.float32)
    step_inputs = _step_inputs(columns, start, end, COLS, STEP)
    for first in tl.range(start, end, STEP):
        if STEP > COLS:
            # The last step may reach beyond this block row, where the values are another's and x may hold NaN.
            in_row = first + stored < end
            weights = tl.load(value_tile, mask=in_row[:, None], other=0.0)
            activations = tl.load(x_tile + step_inputs[None, :], mask=within & in_row[None, :], other=0.0)
        else:
            weights = tl.load(value_tile)
            activations = tl.load(x_tile + step_inputs[None, :], mask=within, other=0.0)
        acc = multiply_add(activations, weights, acc, INTERPRET)
        value_tile += STEP * ROWS
        step_inputs = _step_inputs(columns, first + STEP, end, COLS, STEP)

    finish(acc, bias, y, first_token, tokens, row * ROWS, outputs, HAS_BIAS, ACTIVATION, TOKENS, ROWS)
