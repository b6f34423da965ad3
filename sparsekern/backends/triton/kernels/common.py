"""What the kernels share: the order of programs, the product of two tiles, and how a tile of the output is finished."""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(8)
"""Neighbouring programs take so many row tiles before the next tile of tokens: their weights and inputs stay in L2."""


@triton.jit
def row_and_token_tile(row_tiles, token_tiles):
    """The tile of rows and the tile of tokens of this program, of a one-dimensional grid of all of them."""
    program = tl.program_id(0)
    return tl.swizzle2d(program // token_tiles, program % token_tiles, row_tiles, token_tiles, GROUP)


@triton.jit
def multiply_add(a, b, acc, INTERPRET: tl.constexpr):
    """``acc + a @ b`` with sums in float32; float32 operands are not rounded to TF32.

    The interpreter holds bfloat16 as integers and would multiply those, so operands are widened there.
    """
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _positive(y):
    return tl.where(y < 0, 0.0, y)  # not a maximum, which would lose NaN


@triton.jit
def _up_to_six(y):
    return tl.where(y > 6, 6.0, _positive(y))


@triton.jit
def finish(
    acc,
    bias,
    y,
    first_token,
    tokens,
    first_output,
    outputs,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Store ``activation(acc + bias)`` where it lies within the output.

    Args:
        acc: ``[TOKENS, ROWS]`` float32.
        bias: ``[outputs]``, read if ``HAS_BIAS``.
        y: ``[tokens, outputs]``, contiguous.
        first_token: token of the first row of ``acc``; this and ``tokens`` bound the rows that are stored.
        tokens: number of tokens.
        first_output: output of the first column of ``acc``; this and ``outputs`` bound the columns that are stored.
        outputs: number of outputs.
    """
    token = tl.arange(0, TOKENS)
    output = first_output + tl.arange(0, ROWS)
    within = output < outputs
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=within, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "relu":
        acc = _positive(acc)
    elif ACTIVATION == "gelu":
        acc = 0.5 * acc * (1 + tl.erf(acc * 0.7071067811865476))
    elif ACTIVATION == "silu":
        acc = acc / (1 + tl.exp(-acc))
    elif ACTIVATION == "relu6":
        acc = _up_to_six(acc)
    elif ACTIVATION == "hardswish":
        acc = acc * _up_to_six(acc + 3) / 6
    # All tokens' outputs may be more than 2^31; those of one tile are not.
    tile = y + first_token.to(tl.int64) * outputs
    mask = (first_token + token < tokens)[:, None] & within[None, :]
    tl.store(tile + token[:, None] * outputs + output[None, :], acc.to(y.dtype.element_ty), mask=mask)
