"""``join``: one product for layers that take the same input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from ..layouts import join_outputs
from .plain import has_hooks
from .sparse_linear import SparseLinear


class JoinedLinear(nn.Module):
    """Several sparse layers of one input as one: ``query, key, value = joined(x)``.

    A product lays out its input for the kernel first; of layers that stand apart each does so anew, and reads x anew.
    Made by :func:`join`.

    Attributes:
        linear: the layers' weights below one another, as one :class:`SparseLinear`; trained, moved and saved as any.
        sizes: ``out_features`` of each layer.
    """

    def __init__(self, linear: SparseLinear, sizes: Sequence[int]) -> None:
        super().__init__()
        self.linear = linear
        self.sizes = tuple(sizes)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """``[..., in]`` to one ``[..., out_i]`` for each layer: views of one tensor.

        So they are not contiguous, and what changes one in place counts for autograd as a change of all.
        """
        joined = self.linear(input)
        ends = accumulate(self.sizes)
        # Not split: autograd refuses to change one of its outputs in place.
        return tuple(joined.narrow(-1, end - size, size) for end, size in zip(ends, self.sizes, strict=True))

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"sizes={list(self.sizes)}"


def join(layers: Sequence[SparseLinear]) -> JoinedLinear:
    """Make one layer of several that take the same input, such as the query, key and value of an attention.

    The layers are left as they are; the joined one has copies of their tensors. Where some have a bias and others do
    not, theirs is zero, and trained if the others' are.

    Args:
        layers: one or more, of the same granularity, ``in_features``, dtype, device and activation.

    Returns:
        A module that returns their outputs as a tuple.

    Raises:
        TypeError: no sequence, or one is no :class:`SparseLinear`.
        ValueError: none are given; one differs from the first, or trains where the first does not; one has hooks or a
            forward of its own, which would be lost; one holds NaN or infinity; one ends within a group of outputs of
            which the next keeps other weights, as 24 outputs of ``Block(16, 1)`` may.
    """
    if not isinstance(layers, Iterable):
        raise TypeError(f"join: expected a sequence of SparseLinear, got one {type(layers).__name__}")
    layers = list(layers)
    if not layers:
        raise ValueError("join: expected at least one layer, got none")
    first, names = layers[0], [f"join: layer {i}" for i in range(len(layers))]
    for layer, name in zip(layers, names, strict=True):
        _check_like(first, layer, name)
    packed = join_outputs([layer.packed for layer in layers], names)
    linear = SparseLinear(packed, _joined_bias(layers), first.activation, "JoinedLinear")
    linear._dense_requires_grad = first._dense_requires_grad
    linear.packed.values.requires_grad_(first.packed.values.requires_grad)
    return JoinedLinear(linear, [layer.out_features for layer in layers]).train(first.training)


def _check_like(first: SparseLinear, layer: SparseLinear, name: str) -> None:
    """Refuse a layer that does something else than the first one."""
    if not isinstance(layer, SparseLinear):
        raise TypeError(
            f"{name}: expected a SparseLinear, got {type(layer).__name__}; sparsekern.SparseLinear.from_dense makes one"
        )
    if type(layer).forward is not SparseLinear.forward or "forward" in vars(layer):
        raise ValueError(f"{name}: {type(layer).__name__} has a forward of its own, which would be lost")
    if "bias" not in layer._parameters:
        raise ValueError(f"{name}: its bias is parametrized, which would be lost; remove the parametrization first")
    if has_hooks(layer):
        raise ValueError(f"{name}: has hooks, which would be lost; remove them first")
    for what, found, expected in (
        ("activation", layer.activation, first.activation),
        ("values.requires_grad", layer.packed.values.requires_grad, first.packed.values.requires_grad),
        ("requires_grad of the dense weight", layer._dense_requires_grad, first._dense_requires_grad),
    ):
        if found != expected:
            raise ValueError(f"{name}: expected {what} to be {expected!r} as that of layer 0, got {found!r}")


def _joined_bias(layers: Sequence[SparseLinear]) -> Tensor | None:
    """The biases one after the other, zeros for one that is missing; None if all are."""
    trained = {layer.bias.requires_grad for layer in layers if layer.bias is not None}
    if not trained:
        return None
    if len(trained) > 1:
        raise ValueError("join: expected the bias of every layer to be trained, or of none; got some of both")
    parts = [
        layer.packed.values.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
    ]
    return torch.cat([part.detach() for part in parts]).requires_grad_(trained.pop())
