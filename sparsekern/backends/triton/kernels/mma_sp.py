"""2:4 on sparse tensor cores, by inline assembly in Gluon. **Experimental**: no product chooses it.

Neither Triton nor Gluon has a sparse product, but an elementwise assembly instruction on tensors that are images of
registers is one: where the layout gives thread ``t`` of a warp the elements ``[t, 0..3]``, they are the registers of an
operand, and the warp runs ``mma.sp.m16n8k32`` (PTX ISA 9.7.14.6; operands as in csrc/cuda/ptx/mma_sp.h). The layouts
are pinned, or operands would be moved through shared memory.

The packed image of ``NM(2, 4)`` holds the operands in this order (layouts/fragments.py), so a lane loads its 8 weights
at once. Activations come from global memory as each lane needs them, pair by pair; a fast kernel would fetch them ahead
through shared memory. On sm_90 the instruction runs at the rate of ``mma.sync``, not of ``wgmma``.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

WARPS = gl.constexpr(4)
"""Of a program; each has a tile of 16 outputs."""

_MMA_SP_BF16 = gl.constexpr(
    "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9, $10, $11}, {$12, $13, $14, $15}, $16, 0x0;"
)
_MMA_SP_FP16 = gl.constexpr(
    "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9, $10, $11}, {$12, $13, $14, $15}, $16, 0x0;"
)
# Four elements of each operand at once; of the metadata, which are four times the same, the first is used.
_CONSTRAINTS = gl.constexpr("=f,=f,=f,=f,r,r,r,r,r,r,r,r,f,f,f,f,r,r,r,r")


@gluon.jit
def nm_linear_mma_sp_kernel(
    x,
    values,
    positions,
    y,
    tokens,
    outputs,
    inputs,
    x_stride,
    group_tiles,
    TOKEN_TILES: gl.constexpr,
    BF16: gl.constexpr,
):
    """One tile of ``x @ W.T``: 64 outputs by ``8 TOKEN_TILES`` tokens, of 4 warps.

    Args:
        x: ``[tokens, inputs]`` of pairs of 16-bit numbers, as int32; the inputs of a token side by side.
        values: ``[ceil(outputs / 16), group_tiles, 32, 4]`` of pairs of 16-bit numbers, as int32.
        positions: ``[ceil(outputs / 16), group_tiles, 8, 2]``, the four bytes of each as int32.
        y: ``[tokens, outputs]``, contiguous.
        tokens: number of tokens.
        outputs: number of outputs.
        inputs: number of pairs of inputs.
        x_stride: pairs from one token of ``x`` to the next.
        group_tiles: number of tiles of 8 groups.
        BF16: whether the numbers are bfloat16 and not float16.
    """
    # [tile of 8 tokens, thread, register]
    image: gl.constexpr = gl.BlockedLayout([1, 1, 4], [1, 32, 1], [1, WARPS, 1], [2, 1, 0])
    across: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, image))
    along: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, image))
    within: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, image))
    tile = gl.arange(0, TOKEN_TILES, layout=across)[:, None, None]
    thread = gl.arange(0, 32 * WARPS, layout=along)[None, :, None]
    register = gl.arange(0, 4, layout=within)[None, None, :]
    lane = thread % 32
    g, q = lane // 4, lane % 4

    row_tile = gl.program_id(0) * WARPS + thread // 32
    has_rows = row_tile * 16 < outputs
    weight_tile = row_tile * group_tiles
    first_token = gl.program_id(1) * 8 * TOKEN_TILES
    token = first_token + 8 * tile + g
    pair = 4 * register + q  # of inputs 8 r + 2 q and the next
    x_at = x + token.to(gl.int64) * x_stride + pair

    acc = gl.zeros([TOKEN_TILES, 32 * WARPS, 4], gl.float32, image)
    for step in range(group_tiles):
        a = gl.load(values + (weight_tile + step) * 128 + lane * 4 + register, mask=has_rows, other=0)
        # The lanes q = 0 and 1 hold the metadata of the first and second four groups; others are not read.
        places = gl.load(positions + (weight_tile + step) * 16 + g * 2 + q % 2, mask=has_rows, other=0x4444_4444)
        b = gl.load(x_at + 16 * step, mask=(token < tokens) & (16 * step + pair < inputs), other=0)
        a, _ = gl.broadcast(a, b)
        places, _ = gl.broadcast(places, b)
        acc = gl.inline_asm_elementwise(
            _MMA_SP_BF16 if BF16 else _MMA_SP_FP16,
            _CONSTRAINTS,
            [a, b, acc, places],
            dtype=gl.float32,
            is_pure=True,
            pack=4,
        )

    output = row_tile * 16 + g + 8 * (register // 2)
    column = first_token + 8 * tile + 2 * q + register % 2
    mask = (output < outputs) & (column < tokens)
    gl.store(y + column.to(gl.int64) * outputs + output, acc.to(y.dtype.element_ty), mask=mask)


def nm_linear_mma_sp(x: Tensor, values: Tensor, positions: Tensor, outputs: int) -> Tensor:
    """``x @ W.T``, ``[tokens, outputs]``, with the packed tensors of ``NM(2, 4)``; bfloat16 or float16.

    Args:
        x: ``[tokens, inputs]``, contiguous, an even number of inputs.
        values: ``[ceil(outputs / 16), group tiles, 32, 8]``.
        positions: ``[ceil(outputs / 16), group tiles, 8, 2, 4]`` uint8.
        outputs: number of outputs.
    """
    (tokens, inputs), tiles = x.shape, 8
    if inputs % 2 or not x.is_contiguous() or x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            "nm_linear_mma_sp: expected a contiguous input of 16-bit numbers, an even number of them a row"
        )
    y = x.new_empty(tokens, outputs)
    grid = (triton.cdiv(outputs, 16 * WARPS.value), triton.cdiv(tokens, 8 * tiles))
    nm_linear_mma_sp_kernel[grid](
        x.view(torch.int32),
        values.view(torch.int32),
        positions.view(torch.int32),
        y,
        tokens,
        outputs,
        inputs // 2,
        inputs // 2,
        values.shape[1],
        TOKEN_TILES=tiles,
        BF16=x.dtype == torch.bfloat16,
        num_warps=WARPS.value,
    )
    return y
