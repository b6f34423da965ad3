"""``SparseLinear``: a drop-in for ``nn.Linear`` whose weight is packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..layouts import Granularity, PackedWeight, pack
from ..ops import check_linear
from ..plan import Backend, Request, select
from ..prune import make_mask
from .functional import check_packed, checked_input, run_linear
from .plain import beyond_linear


class SparseLinear(nn.Module):
    """``y = activation(x @ W.T + bias)`` with ``W`` packed.

    The packed tensors are buffers under their own names (``values``, ``columns``, ``offsets`` for
    blocks) and ``bias`` is a Parameter, so ``state_dict``, ``deepcopy``, pickling, ``.to``, compiling
    and exporting work as for any module. The back end is chosen when the layer is made, moved, cast or
    loaded, not at each call.

    Gradients reach the input, the bias and, after ``layer.values.requires_grad_()``, the kept weights. Theirs
    has the shape of ``values`` and is zero in the padding: an optimizer's step costs what the density says and
    leaves pruned weights pruned. Until then the values are frozen: they get no gradient, and asking
    ``torch.autograd.grad`` for it is an error.

    ``weight`` is unpacked at each access: code that reads it works and pays for it, code that writes to
    it changes nothing. As a buffer, ``values`` is not in ``parameters()``: give it to an optimizer by
    hand, and train it without DistributedDataParallel, which averages the gradients of Parameters only.

    Args:
        packed: the weight ``[out, in]``.
        bias: ``[out]`` or None, the weight's dtype and device.
        activation: None, ``"relu"``, ``"gelu"`` or ``"silu"``, fused.
        name: how errors call this layer.

    Raises:
        TypeError: ``packed`` is no packed weight; a bias of another dtype or device.
        ValueError: a bias of another shape, an unknown activation, a malformed ``packed``.
    """

    bias: Tensor | None
    # Whether the weight of the dense layer that this one stands for was to be trained.
    _dense_requires_grad = True

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        activation: str | None = None,
        name: str = "SparseLinear",
    ) -> None:
        super().__init__()
        check_packed(packed, name)
        self.shape = packed.shape
        self.out_features, self.in_features = packed.shape
        self.granularity = packed.granularity
        self.activation = activation or "none"
        self.name = name
        for part, tensor in packed.parts.items():
            self.register_buffer(part, tensor)
        own_bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", own_bias)
        probe = packed.values.new_empty(0, self.in_features)
        check_linear(probe, packed.values, own_bias, self.shape, self.activation, name)
        self._choose_backend()

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        granularity: Granularity,
        sparsity: float | None = None,
        mask: Tensor | None = None,
    ) -> SparseLinear:
        """Prune and pack an ``nn.Linear``.

        Args:
            linear: the dense layer; it is left as it was.
            granularity: groups that are kept or dropped together.
            sparsity: share of the groups to drop by magnitude, in [0, 1); granularities that imply one need none.
            mask: bool ``[out, in]``, True = kept, instead of ``sparsity``. With neither, and none implied, the
                zeros of the weight are the mask.

        Raises:
            TypeError: not an ``nn.Linear``.
            ValueError: an ``nn.Linear`` that is, does or has more, which would be lost; both
                ``sparsity`` and ``mask``; what :func:`sparsekern.pack` refuses.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"SparseLinear.from_dense: expected an nn.Linear, got {type(linear).__name__}")
        if beyond := beyond_linear(linear):
            raise ValueError(f"SparseLinear.from_dense: expected a plain nn.Linear, got one that is more: {beyond}")
        if sparsity is not None and mask is not None:
            raise ValueError("SparseLinear.from_dense: give sparsity or mask, not both")
        if sparsity is not None or (mask is None and granularity.implied_sparsity is not None):
            mask = make_mask(linear.weight, granularity, sparsity)
        layer = cls(pack(linear.weight, granularity, mask), linear.bias)
        layer._dense_requires_grad = linear.weight.requires_grad
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``; see :func:`sparsekern.linear` for what is accepted."""
        # Plain lookups and few calls: at one token all of this costs as much as a small product.
        buffers: dict[str, Any] = self._buffers
        tensors = [buffers[name] for name in self.granularity.part_names]
        bias = self._parameters["bias"] if "bias" in self._parameters else self.bias
        values = tensors[0]
        if (
            input.dtype is not values.dtype
            or input.dim() == 0
            or input.size(-1) != self.shape[1]
            or input.device != values.device
        ):
            input = checked_input(input, values, bias, self.shape, self.activation, self.name)
        return run_linear(self._backend, input, self.granularity, self.shape, tensors, bias, self.activation)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[out, in]``, unpacked anew at each access and not connected to gradients.

        For code that asks a layer for its weight, its dtype or its device. It is a copy: what is written
        to it is lost, so change ``values``. To multiply, call the layer.
        """
        return self.packed.to_dense().detach()

    @property
    def packed(self) -> PackedWeight:
        """The weight as a :class:`PackedWeight` that shares this layer's tensors."""
        parts = {name: self.get_buffer(name) for name in self.granularity.part_names}
        return PackedWeight(self.granularity, self.shape, parts, verified=True)

    def to_dense(self) -> nn.Module:
        """The dense layer with the same outputs: an ``nn.Linear``, with its activation behind it."""
        dense = empty_dense(self)
        dense.weight = nn.Parameter(self.packed.to_dense(), requires_grad=dense.weight.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        if self.activation == "none":
            return dense.train(self.training)
        activation = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}[self.activation]()
        return nn.Sequential(dense, activation).train(self.training)

    def extra_repr(self) -> str:
        """Shape, granularity and, unless on the meta device, density, for ``print(model)``."""
        packed = self.packed
        density = "" if packed.device.type == "meta" else f", density={packed.density:.3g}"
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"granularity={self.granularity.label}{density}{fused}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        """Every move and cast of a module ends here."""
        values = self.get_buffer(self.granularity.part_names[0])

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
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
        values = self.get_buffer(self.granularity.part_names[0])
        self._backend: Backend = select(Request(self.granularity, self.shape, values.dtype, values.device.type))

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
            loaded = PackedWeight.from_tensors(self.granularity, self.shape, tensors, prefix.rstrip(".") or self.name)
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


def empty_dense(layer: SparseLinear) -> nn.Linear:
    """An ``nn.Linear`` of a sparse layer's size, without bias and with a weight still to be filled."""
    values = layer.get_buffer(layer.granularity.part_names[0])
    # Not nn.Linear alone: that would draw a weight and so change what the caller's generator gives next.
    dense = skip_init(
        nn.Linear, layer.in_features, layer.out_features, bias=False, device=values.device, dtype=values.dtype
    )
    dense.weight.requires_grad_(layer._dense_requires_grad or values.requires_grad)
    return dense
