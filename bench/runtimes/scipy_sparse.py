"""SciPy's BSR matrix: one thread whatever the problem says."""

from __future__ import annotations

from .base import Library, Prepared, Problem, need_square_blocks


class Bsr(Library):
    """``(W @ x.T).T``, the only order of a sparse weight and dense activations that SciPy computes itself."""

    name, kind = "scipy_bsr", "sparse"
    module, package = "scipy.sparse", "scipy"

    def refusal(self, problem: Problem) -> str | None:
        return need_square_blocks(problem)

    def prepare(self, problem: Problem) -> Prepared:
        import scipy.sparse

        weight = scipy.sparse.bsr_array(problem.weight, blocksize=problem.block)
        return Prepared(lambda: (weight @ problem.x.T).T, "one thread")
