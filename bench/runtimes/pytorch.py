"""PyTorch's own dense and sparse tensors, and zentorch, AMD's extension of it."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

from .base import Call, Contestant, Library, Prepared, Problem, fastest, need_square_blocks

if TYPE_CHECKING:
    import torch


class _Torch(Library):
    module = package = "torch"

    def tensors(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and weight, on the problem's number of threads."""
        import torch

        torch.set_num_threads(problem.threads)
        return torch.from_numpy(problem.x), torch.from_numpy(problem.weight)


class Eager(_Torch):
    """``F.linear`` on a dense weight."""

    name, kind = "torch_eager", "dense"

    def prepare(self, problem: Problem) -> Prepared:
        import torch.nn.functional as F

        x, weight = self.tensors(problem)
        return Prepared(lambda: F.linear(x, weight))


class _Compiled(_Torch):
    kind = "dense"

    def enter(self, problem: Problem, neighbour: Problem) -> Contestant:
        import torch

        # Code of an earlier shape or number of threads would count as recompilation of the same function.
        torch._dynamo.reset()
        return super().enter(problem, neighbour)


class Compiled(_Compiled):
    """``torch.compile`` with the weight as a constant, with and without choosing by measurement; and oneDNN."""

    name = "torch_compiled"

    def prepare(self, problem: Problem) -> Prepared:
        import torch
        from dense import linear_variants

        x, weight = self.tensors(problem)
        inference = torch.inference_mode()
        with inference:
            variants = linear_variants(_layer(weight), x, compiled=True)
        del variants["eager"]
        # With gradients, as in a worker, the calls would compile anew and freeze nothing.
        return fastest({name: inference(call) for name, call in variants.items()})


class Sparse(_Torch):
    """A weight in one of PyTorch's compressed layouts, in one of the two orientations that users write.

    Args:
        layout: "bsr" or "csr".
        orientation: "linear" for ``F.linear(x, W)``; "matmul" for ``(W @ x.T).T``, whose output stays a transposed
            view: that making it contiguous is not counted is to the peer's advantage.
    """

    kind = "sparse"

    def __init__(self, layout: str, orientation: str) -> None:
        self.layout, self.orientation = layout, orientation
        self.name = f"torch_{layout}_{orientation}"

    def refusal(self, problem: Problem) -> str | None:
        return need_square_blocks(problem) if self.layout == "bsr" else None

    def prepare(self, problem: Problem) -> Prepared:
        import torch.nn.functional as F

        x, dense = self.tensors(problem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that these layouts are in beta
            weight = dense.to_sparse_bsr(problem.block) if self.layout == "bsr" else dense.to_sparse_csr()
        if self.orientation == "linear":
            return Prepared(lambda: F.linear(x, weight))
        return Prepared(lambda: (weight @ x.T).T)


class Zentorch(_Compiled):
    """Compiled with zentorch as back end, with and without constant folding; the faster counts."""

    name = "zentorch"
    module = package = "zentorch"
    install = "torch==2.13.0 zentorch==2.13.0.2"
    own_process = own_environment = True  # importing it changes how PyTorch itself computes

    def prepare(self, problem: Problem) -> Prepared:
        import torch
        import torch._inductor.config as inductor

        x, weight = self.tensors(problem)
        # Folding needs it, and a worker has nothing else to compute.
        torch.set_grad_enabled(False)
        ways: dict[str, Call] = {}
        for variant, freezing in (("plain", False), ("frozen", True)):
            with inductor.patch(freezing=freezing):
                run = torch.compile(_layer(weight), dynamic=False, backend="zentorch")
                run(x)
            ways[variant] = partial(run, x)
        return fastest(ways)


def _layer(weight: torch.Tensor) -> torch.nn.Linear:
    import torch

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer
