"""Products with ``Block(r, c)`` on Hopper and Blackwell: tiles come by TMA, fetched by warps that do nothing else.

The same walk as in block.py, for what the copy engine takes: a step lies within one block, so that its activations are
one box of ``x`` and its weights one box of the block row. What lies beyond either is zero by hardware, so activations
need not be padded to whole blocks, only begin their rows at multiples of 16 bytes.

``warp_specialize`` makes Triton split the loop between warps that fetch and warps that multiply, with a ring of buffers
and barriers between them; tests/triton/test_compiled_tma.py looks for both (Triton 3.6 to 3.9). On sm_90 that needs 4
warps, of which it makes 12: 4 that fetch, and twice 4 for half of the tokens each. With 8 it splits nothing, silently.
On sm_100 2 warps fetch and 1 issues the products.

**The columns are loaded where they are used**, unlike in block.py: the warps that fetch are ahead by all stages anyway,
and a carried int32 column makes Triton fail for sm_90 (3.6 to 3.9).

Descriptors are made by the program, not passed to it, for ``wrap_triton`` cannot trace those made on the host (torch
2.13). They lie in memory that Triton asks an allocator for at each launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .block import load_columns
from .common import finish, multiply_add, row_and_token_tile


@triton.jit
def block_linear_tma_kernel(
    x,
    values,
    columns,
    offsets,
    bias,
    y,
    tokens,
    outputs,
    inputs,
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
        x: ``[tokens, inputs]``, each token's inputs side by side; it and its rows begin at multiples of 16 bytes.
        values: ``[blocks, COLS, ROWS]``, at a multiple of 16 bytes.
        columns: ``[blocks, 2]`` uint8.
        offsets: ``[ceil(outputs / ROWS) + 1]`` int32.
        bias: ``[outputs]``, read if ``HAS_BIAS``.
        y: ``[tokens, outputs]``, contiguous.
        tokens: number of tokens.
        outputs: number of outputs.
        inputs: number of inputs.
        x_stride: numbers from one token of ``x`` to the next, no fewer than ``inputs``.
        STEP: stored inputs that are multiplied at once; divides ``COLS``.
    """
    row, tile = row_and_token_tile(tl.cdiv(outputs, ROWS), tl.cdiv(tokens, TOKENS))
    start = tl.load(offsets + row) * COLS
    end = tl.load(offsets + row + 1) * COLS
    first_token = tile * TOKENS

    weights_of_row = tl.make_tensor_descriptor(
        values + start.to(tl.int64) * ROWS, [end - start, ROWS], [ROWS, 1], [STEP, ROWS]
    )
    activations_of_all = tl.make_tensor_descriptor(x, [tokens, inputs], [x_stride, 1], [TOKENS, STEP])

    acc = tl.zeros((TOKENS, ROWS), tl.float32)
    for first in tl.range(start, end, STEP, warp_specialize=True):
        column = load_columns(columns, first // COLS, True)
        weights = weights_of_row.load([first - start, 0])
        activations = activations_of_all.load([first_token, column * COLS + first % COLS])
        acc = multiply_add(activations, weights, acc, INTERPRET)

    finish(acc, bias, y, first_token, tokens, row * ROWS, outputs, HAS_BIAS, ACTIVATION, TOKENS, ROWS)
