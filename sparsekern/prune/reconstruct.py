"""Second-order pruning of one linear layer: what a group costs, and the best weights for a mask.

With inputs ``X`` ``[tokens, in]``, weight ``W`` ``[out, in]`` and ``H = X.T @ X`` the squared error
of the outputs is ``trace((W - V) H (W - V).T)``: it depends on the inputs through ``H`` alone, and
each output row is a least-squares problem of its own. This is Optimal Brain Surgeon (Hassibi &
Stork, NIPS 1992) for a layer at a time, as in Optimal Brain Compression (Frantar & Alistarh,
NeurIPS 2022); the cost of a group of columns is that of ZipLM (Kurtic et al., NeurIPS 2023,
section 3.1), here for each band of rows by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import Block, Channel, Granularity

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of a Gram matrix. Inputs that depend on
each other make it singular; this bounds its condition by ``in / DAMPING``, which float32 can solve."""


def dampen(gram: Tensor) -> Tensor:
    """``gram + DAMPING * mean(diagonal) * I``, the identity if the matrix is zero; a new ``[in, in]``."""
    mean = gram.diagonal().mean()
    hessian = gram.clone()
    hessian.diagonal().add_(torch.where(mean > 0, DAMPING * mean, 1.0))
    return hessian


def reconstruct(weight: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """The weights that follow a mask and keep the layer's outputs best, in the least-squares sense.

    For a row with kept inputs S and dropped inputs D the minimum is
    ``v_S = w_S + inv(H_SS) H_SD w_D``. Rows with the same S, such as the r rows of a band of r x c
    blocks, are solved together, so coarse granularities are cheap: the cost is one Cholesky
    factorisation, ``len(S)^3 / 3`` multiply-adds, for each distinct S. (A loop, because a batched
    factorisation is not faster on a CPU.)

    With a damped Hessian the error on the data that it comes from never exceeds that of
    ``weight * mask``: the damping only adds the squared change of the weights to what is minimised.

    Args:
        weight: ``[out, in]``.
        hessian: ``X.T @ X``, positive definite, ``[in, in]``, see :func:`dampen`.
        mask: bool ``[out, in]``, True = kept.

    Returns:
        ``[out, in]``, zero where ``mask`` is False, the weight's dtype.

    Raises:
        torch.linalg.LinAlgError: the Hessian is not positive definite.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    dense, hessian = weight.detach().to(dtype), hessian.to(dtype)
    result = torch.where(mask, dense, 0)
    for support, rows in _rows_by_support(mask):
        kept = support.nonzero()[:, 0]
        if len(kept) in (0, len(support)):
            continue
        band = dense.index_select(0, rows)
        to_kept = hessian.index_select(0, kept)
        factor = torch.linalg.cholesky(to_kept.index_select(1, kept))
        pull = to_kept @ torch.where(support, 0, band).T
        solved = band.index_select(1, kept) + torch.cholesky_solve(pull, factor).T
        result[rows] = torch.zeros_like(band).index_copy_(1, kept, solved)
    return result.to(weight.dtype)


def group_scores(weight: Tensor, hessian: Tensor, inverse: Tensor, granularity: Granularity) -> Tensor:
    """How much dropping each group would cost, for :meth:`Granularity.mask`.

    Two joint costs bound it, summed over the group's rows ``w`` and over its columns S:

    - ``w_S H_SS w_S`` if no other weight makes up for the loss (for single columns this is the
      criterion of Wanda, Sun et al., ICLR 2024);
    - ``w_S inv(inv(H)_SS) w_S`` if all others do (Optimal Brain Surgeon).

    A one-shot mask drops many groups at once, so the truth lies between: the score is their geometric
    mean. On the demo's model (16x1, 4x1 and 16x16 at 50, 25 and 10 % density) the mean Pearson
    correlation is 0.540, against 0.506 and 0.524 with the bounds, which are ahead of each other in
    turns. Dropping in two rounds, the second with new scores, lowered the layers' errors by 7 % at
    three times the cost, and changed the correlation by less than its standard error.

    Args:
        weight: ``[out, in]``.
        hessian: damped ``X.T @ X``, ``[in, in]``.
        inverse: its inverse, ``[in, in]``.
        granularity: blocks and channels are scored jointly over their columns; any other granularity
            by the diagonals, which is exact for groups within one column.

    Returns:
        ``[out, in]``; the sum over each group is its score. Single entries may be negative.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    dense = weight.detach().to(dtype)
    if isinstance(granularity, Channel):
        return (dense @ hessian.to(dtype)) * dense  # nothing of the row is left to make up for it
    columns = granularity.cols if isinstance(granularity, Block) else 1
    alone = _quadratic(dense, _diagonal_blocks(hessian.to(dtype), columns))
    helped = _quadratic(dense, torch.linalg.inv(_diagonal_blocks(inverse.to(dtype), columns)))
    upper, lower = granularity.group_sums(alone), granularity.group_sums(helped)
    shrink = torch.where(upper > 0, (lower / upper).clamp(0, 1).sqrt(), 0)
    return alone * granularity.spread(shrink, (weight.shape[0], weight.shape[1]))


def _rows_by_support(mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each distinct row of a mask ``[in]`` with the numbers of the rows that equal it."""
    supports, member = torch.unique(mask, dim=0, return_inverse=True)
    rows = member.argsort().split(torch.bincount(member).tolist())
    yield from zip(supports, rows, strict=True)


def _diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """The ``size`` x ``size`` blocks on the diagonal, ``[blocks, size, size]``; the last one padded by I."""
    if size == 1:
        return matrix.diagonal()[:, None, None]
    blocks = -(-len(matrix) // size)
    pad = blocks * size - len(matrix)
    padded = F.pad(matrix, (0, pad, 0, pad))
    if pad:
        padded.diagonal()[-pad:] = 1
    return padded.view(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _quadratic(weight: Tensor, blocks: Tensor) -> Tensor:
    """``[out, in]`` whose sum over a row's columns of a block is ``w A w``, A being that block."""
    count, size, _ = blocks.shape
    padded = F.pad(weight, (0, count * size - weight.shape[1])).view(-1, count, size)
    products = torch.einsum("nbc,bcd->nbd", padded, blocks) * padded
    return products.reshape(len(weight), -1)[:, : weight.shape[1]]
