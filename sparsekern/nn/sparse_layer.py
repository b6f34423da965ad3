"""What layers with a packed weight have in common: its tensors as buffers, and what becomes of them in a module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layouts import Granularity, PackedWeight, pack
from ..plan import Backend
from ..prune import make_mask
from .functional import check_packed
from .plain import DenseLayer, beyond_plain

ACTIVATION_MODULES = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
}
"""The module that computes each fused activation, as it is made without arguments."""


class SparseLayer(nn.Module):
    """A layer with a packed weight; see its subclasses.

    Args:
        packed: the weight.
        bias: ``[out]`` or None.
        activation: fused; None for none.
        name: how errors call this layer.

    Raises:
        TypeError: ``packed`` is no packed weight.
        ValueError: a malformed ``packed``.
    """

    bias: Tensor | None
    # Whether the weight of the dense layer that this one stands for was to be trained.
    _dense_requires_grad = True
    _is_convolution: ClassVar[bool] = False

    def __init__(self, packed: PackedWeight, bias: Tensor | None, activation: str | None, name: str) -> None:
        super().__init__()
        check_packed(packed, name, self._is_convolution)
        self.shape, self._kernel = packed.shape, packed.kernel
        self.granularity = packed.granularity
        self.activation = activation or "none"
        self.name = name
        for part, tensor in packed.parts.items():
            self.register_buffer(part, tensor)
        own_bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", own_bias)

    @abstractmethod
    def _dense_like(self, values: Tensor) -> DenseLayer:
        """The dense layer without bias, of the dtype and device of the values, whose weight nobody has filled."""

    @abstractmethod
    def _select_backend(self, values: Tensor) -> Backend:
        """The back end for values of this dtype and device."""

    @abstractmethod
    def _size(self) -> str:
        """What ``print(model)`` says about the layer before its weight."""

    @property
    def weight(self) -> Tensor:
        """The dense weight, unpacked anew at each access and not connected to gradients.

        For code that asks a layer for its weight, its dtype or its device. It is a copy: what is written
        to it is lost, so change ``values``. To multiply, call the layer.
        """
        return self.packed.to_dense().detach()

    @property
    def packed(self) -> PackedWeight:
        """The weight as a :class:`PackedWeight` that shares this layer's tensors."""
        parts = {name: self.get_buffer(name) for name in self.granularity.part_names}
        return PackedWeight(self.granularity, self.shape, parts, self._kernel, verified=True)

    def empty_dense(self) -> DenseLayer:
        """The dense layer of this one's size, without bias and with a weight still to be filled."""
        values = self.get_buffer(self.granularity.part_names[0])
        dense = self._dense_like(values)
        dense.weight.requires_grad_(self._dense_requires_grad or values.requires_grad)
        return dense

    def to_dense(self) -> nn.Module:
        """The dense layer with the same outputs, with its activation behind it."""
        dense = self.without_activation()
        if self.activation == "none":
            return dense
        return nn.Sequential(dense, ACTIVATION_MODULES[self.activation]()).train(self.training)

    def without_activation(self) -> DenseLayer:
        """The dense layer with the outputs that this one has before its activation."""
        dense = self.empty_dense()
        dense.weight = nn.Parameter(self.packed.to_dense(), requires_grad=dense.weight.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Shape, granularity and, unless on the meta device, density, for ``print(model)``."""
        packed = self.packed
        density = "" if packed.device.type == "meta" else f", density={packed.density:.3g}"
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        return f"{self._size()}, bias={self.bias is not None}, granularity={self.granularity.label}{density}{fused}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLayer:
        """Every move and cast of a module ends here."""
        values = self.get_buffer(self.granularity.part_names[0])

        def move(tensor: Tensor) -> Tensor:
            # Flat: Module.to(memory_format=...) takes whatever has four dimensions or five for images.
            flat = tensor.detach().flatten() if tensor.dim() > 3 else tensor
            moved = fn(flat)
            moved = tensor if moved is flat else moved.view(tensor.shape)
            # Module.type(dtype) casts integers too, which would spoil the indices.
            if not tensor.is_floating_point() and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            # What wants gradients must stay a leaf, which Module sees to for Parameters only.
            if tensor is values and tensor.requires_grad and moved is not tensor:
                return moved.detach().requires_grad_()
            return moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        self._choose_backend()
        return self

    def _choose_backend(self) -> None:
        """Ask the plan once, not at each call; it is asked again whenever dtype or device may have changed."""
        self._backend: Backend = self._select_backend(self.get_buffer(self.granularity.part_names[0]))

    def __getstate__(self) -> dict[str, Any]:
        """Without the back end: a copy or another process chooses its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_backend"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._choose_backend()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take packed tensors of any number of blocks, once verified: kernels trust their indices."""
        names = self.granularity.part_names
        before = dict(self._buffers)
        wants_grad = self.get_buffer(names[0]).requires_grad
        found = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if found:
            # A partial state is judged together with the tensors that stay.
            device = next(iter(found.values())).device
            tensors = [found[name] if name in found else self.get_buffer(name).to(device) for name in names]
            what = prefix.rstrip(".") or self.name
            loaded = PackedWeight.from_tensors(self.granularity, self.shape, tensors, what, self._kernel)
            for name, tensor in loaded.parts.items():
                own = self.get_buffer(name)
                if own.shape != tensor.shape:
                    self.register_buffer(name, torch.empty_like(tensor, device=own.device, dtype=own.dtype))
        try:
            super()._load_from_state_dict(state_dict, prefix, *args)
        except BaseException:  # a hook on this layer, before anything was copied
            self._buffers.update(before)  # no kernel may read indices from memory still to be filled
            raise
        values = self.get_buffer(names[0])
        if values.requires_grad != wants_grad:
            self.register_buffer(names[0], values.detach().requires_grad_(wants_grad))
        self._choose_backend()


def pack_dense(
    dense: nn.Module,
    kind: type[nn.Module],
    granularity: Granularity,
    sparsity: float | None,
    mask: Tensor | None,
    what: str,
) -> PackedWeight:
    """Prune and pack the weight of a dense layer, for ``from_dense``.

    Args:
        dense: to be a plain layer of ``kind``.
        kind: ``nn.Linear`` or the like.
        granularity: groups that are kept or dropped together.
        sparsity: share of the groups to drop by magnitude; None where the granularity implies it, or ``mask`` is given.
        mask: bool, the weight's shape, True = kept; None with a sparsity, or for the zeros of the weight.
        what: how errors call the function.

    Raises:
        TypeError: another kind of layer.
        ValueError: a layer that is, does or has more, which would be lost; both ``sparsity`` and ``mask``; what
            :func:`sparsekern.pack` refuses.
    """
    if not isinstance(dense, kind):
        raise TypeError(f"{what}: expected an nn.{kind.__name__}, got {type(dense).__name__}")
    if beyond := beyond_plain(dense):
        raise ValueError(f"{what}: expected a plain nn.{kind.__name__}, got one that is more: {beyond}")
    if sparsity is not None and mask is not None:
        raise ValueError(f"{what}: give sparsity or mask, not both")
    weight = dense.get_parameter("weight")
    if sparsity is not None or (mask is None and granularity.implied_sparsity is not None):
        mask = make_mask(weight, granularity, sparsity)
    return pack(weight, granularity, mask)
