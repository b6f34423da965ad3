"""Convolutions with ``Block(r, c)`` as products: the pixels take the place of the tokens (implicit GEMM).

The weight is the packed matrix ``[out, kh * kw * in]``, in the order of channels-last images, and the walk down its
block rows is that of ``block.py``. The channels are a multiple of a block's columns, so that a block lies within one
tap, a pixel of the convolution's own kernel. A block column then is one distance in memory for all pixels of a tile,
and a question for each of them: whether the tap falls on the image or on the zeros around it. The tap is found from the
column by divisions, for which the number of channels is known when the kernel is compiled.

As there, the columns are fetched a step ahead, or the pipeliner would spend its stages on them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .block import load_columns
from .common import finish, multiply_add, row_and_token_tile


@triton.jit
def _step_columns(columns, first, end, COLS: tl.constexpr, STEP: tl.constexpr):
    """Block column of the stored inputs from ``first`` on, ``[STEP]`` if there are several; from ``end`` on any."""
    if STEP <= COLS:
        column = load_columns(columns, first // COLS, first < end)
    else:
        stored = first + tl.arange(0, STEP)
        column = tl.max_constancy(load_columns(columns, stored // COLS, stored < end), COLS)
    return column


@triton.jit
def block_conv2d_kernel(
    x,
    values,
    columns,
    offsets,
    bias,
    y,
    pixels,
    outputs,
    group_outputs,
    height,
    width,
    out_height,
    out_width,
    x_image,
    x_row,
    x_pixel,
    stride_down,
    stride_right,
    padding_down,
    padding_right,
    dilation_down,
    dilation_right,
    CHANNELS: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of ``activation(conv2d(x, W) + bias)``: ``TOKENS`` pixels by the ``ROWS`` outputs of a block row.

    Args:
        x: images whose channels lie side by side.
        values: ``[blocks, COLS, ROWS]``.
        columns: ``[blocks, 2]`` uint8 or ``[blocks]`` int32.
        offsets: ``[ceil(outputs / ROWS) + 1]`` int32.
        bias: ``[outputs]``, read if ``HAS_BIAS``.
        y: ``[pixels, outputs]``, contiguous.
        pixels: of the output, those of all images.
        outputs: number of outputs.
        group_outputs: those of a group; a multiple of ``ROWS``, or all of them.
        height: this and the next: of the input.
        width: see there.
        out_height: this and the next: of the output.
        out_width: see there.
        x_image: numbers from one image of ``x`` to the next; this and the next two multiples of 16.
        x_row: the same of rows.
        x_pixel: the same of pixels.
        stride_down: this and what follows as in ``Geometry``.
        CHANNELS: inputs of a group; a multiple of ``COLS``.
        KERNEL_WIDTH: of the convolution's kernel.
        STEP: stored inputs that are multiplied at once; divides ``COLS`` or is a multiple of it.
    """
    row, tile = row_and_token_tile(tl.cdiv(outputs, ROWS), tl.cdiv(pixels, TOKENS))
    start = tl.load(offsets + row) * COLS
    end = tl.load(offsets + row + 1) * COLS
    first_pixel = tile * TOKENS

    stored = tl.arange(0, STEP)
    pixel = first_pixel + tl.arange(0, TOKENS)
    within = pixel < pixels
    in_image = pixel % (out_height * out_width)
    # Of the first tap, which may lie outside the image.
    top = in_image // out_width * stride_down - padding_down
    left = in_image % out_width * stride_right - padding_right
    image = (pixel // (out_height * out_width)).to(tl.int64) * x_image
    group = row * ROWS // group_outputs
    x_tile = x + group * CHANNELS + (image + top.to(tl.int64) * x_row + left.to(tl.int64) * x_pixel)[:, None]
    value_tile = values + start.to(tl.int64) * ROWS + stored[:, None] * ROWS + tl.arange(0, ROWS)[None, :]

    RUN: tl.constexpr = STEP if STEP <= COLS else COLS
    acc = tl.zeros((TOKENS, ROWS), tl.float32)
    column = _step_columns(columns, start, end, COLS, STEP)
    for first in tl.range(start, end, STEP):
        tap = column * COLS // CHANNELS
        down = tap // KERNEL_WIDTH * dilation_down
        right = tap % KERNEL_WIDTH * dilation_right
        moved = down.to(tl.int64) * x_row + right.to(tl.int64) * x_pixel + column * COLS % CHANNELS
        # The hint is what the compiler cannot see, and without which it would load number by number.
        step_inputs = tl.max_contiguous(tl.multiple_of(moved + (first + stored) % COLS, 16), RUN)
        if STEP > COLS:
            # The last step may reach beyond this block row, where the values are another's and x may hold NaN.
            in_row = first + stored < end
            y_at, x_at = top[:, None] + down[None, :], left[:, None] + right[None, :]
            inside = within[:, None] & in_row[None, :] & (y_at >= 0) & (y_at < height) & (x_at >= 0) & (x_at < width)
            weights = tl.load(value_tile, mask=in_row[:, None], other=0.0)
        else:
            y_at, x_at = top + down, left + right
            inside = (within & (y_at >= 0) & (y_at < height) & (x_at >= 0) & (x_at < width))[:, None]
            weights = tl.load(value_tile)
        activations = tl.load(x_tile + step_inputs[None, :], mask=inside, other=0.0)
        acc = multiply_add(activations, weights, acc, INTERPRET)
        value_tile += STEP * ROWS
        column = _step_columns(columns, first + STEP, end, COLS, STEP)

    finish(acc, bias, y, first_pixel, pixels, row * ROWS, outputs, HAS_BIAS, ACTIVATION, TOKENS, ROWS)
