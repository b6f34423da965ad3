"""How well the similarities that a model finds agree with those that people see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Quality:
    """Agreement of a model with human ratings over all pairs of documents.

    Attributes:
        pearson: correlation of cosine similarity and rating.
        spearman: correlation of their ranks.
        cosines: cosine similarities of all documents, ``[documents, documents]`` float64.
    """

    pearson: float
    spearman: float
    cosines: Tensor


def embed(model: nn.Module, documents: Sequence[Tensor]) -> Tensor:
    """Unit-length sentence embeddings ``[documents, width]`` float64: the mean over all tokens.

    Args:
        model: takes ``input_ids`` and returns ``last_hidden_state``.
        documents: token ids, ``[1, tokens]`` each; one at a time, so there is no padding.
    """
    with torch.inference_mode():
        means = [model(input_ids=ids).last_hidden_state.mean(1) for ids in documents]
    return F.normalize(torch.cat(means).double())


def rate(model: nn.Module, documents: Sequence[Tensor], ratings: Tensor) -> Quality:
    """Compare a model with the ratings ``[documents, documents]``, of which the upper triangle counts."""
    vectors = embed(model, documents)
    cosines = vectors @ vectors.T
    found, human = upper_triangle(cosines), upper_triangle(ratings.double())
    return Quality(pearson(found, human), pearson(ranks(found), ranks(human)), cosines)


def pearson(a: Tensor, b: Tensor) -> float:
    """Correlation of two vectors."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def ranks(values: Tensor) -> Tensor:
    """Rank of each value, 1 for the smallest; equal values share the mean of their ranks."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


def difference_error(quality: Quality, reference: Quality, ratings: Tensor) -> float:
    """Standard error of ``quality.pearson - reference.pearson``, by leaving out each document in turn.

    The jackknife (Efron & Stein, 1981) over documents and not pairs, for the pairs of one document
    are not independent.
    """
    n = len(ratings)
    changes = []
    for left_out in range(n):
        kept = torch.arange(n) != left_out
        human = upper_triangle(ratings[kept][:, kept].double())
        ours, theirs = (upper_triangle(q.cosines[kept][:, kept]) for q in (quality, reference))
        changes.append(pearson(ours, human) - pearson(theirs, human))
    spread = torch.tensor(changes, dtype=torch.float64)
    return float(((n - 1) / n * (spread - spread.mean()).square().sum()).sqrt())


def upper_triangle(matrix: Tensor) -> Tensor:
    """The entries above the diagonal, ``[n (n - 1) / 2]``."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[rows, columns]
