"""``SparseLinear``: a drop-in for ``nn.Linear`` whose weight is packed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..layouts import Granularity, PackedWeight
from ..ops import check_linear
from ..plan import Backend, Request, select
from .functional import checked_input, run_linear
from .sparse_layer import SparseLayer, pack_dense


class SparseLinear(SparseLayer):
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

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        activation: str | None = None,
        name: str = "SparseLinear",
    ) -> None:
        super().__init__(packed, bias, activation, name)
        self.out_features, self.in_features = packed.shape
        probe = packed.values.new_empty(0, self.in_features)
        check_linear(probe, packed.values, self.bias, self.shape, self.activation, name)
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
        packed = pack_dense(linear, nn.Linear, granularity, sparsity, mask, "SparseLinear.from_dense")
        layer = cls(packed, linear.bias)
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

    def _dense_like(self, values: Tensor) -> nn.Linear:
        # Not nn.Linear alone: that would draw a weight and so change what the caller's generator gives next.
        return skip_init(
            nn.Linear, self.in_features, self.out_features, bias=False, device=values.device, dtype=values.dtype
        )

    def _select_backend(self, values: Tensor) -> Backend:
        return select(Request(self.granularity, self.shape, values.dtype, values.device.type))

    def _size(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
