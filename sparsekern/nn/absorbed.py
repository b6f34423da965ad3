"""What stands where a module stood that is part of the layer before it now."""

from __future__ import annotations

from itertools import takewhile
from typing import ClassVar

from torch import nn


class Absorbed(nn.Identity):
    """An identity in the place of a module that is now part of a layer; see its subclasses.

    Args:
        layer: name of that layer, in the model in which this happened.
        name: of the module, in the same.
    """

    _kind: ClassVar[str]
    _kind_of_layer: ClassVar[str]
    _became: ClassVar[str]

    def __init__(self, layer: str, name: str) -> None:
        super().__init__()
        self.layer, self.name = layer, name

    def find_layer(self, name: str) -> str | None:
        """Name of the layer in a model that this module has another ``name`` in: a part, a larger one, a copy.

        None if what leads from the one to the other is not in that name.
        """
        own, layer = self.name.split("."), self.layer.split(".")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, layer, strict=False)))
        path = ".".join(own[shared:])
        if not f".{name}".endswith(f".{path}"):
            return None
        return name.removesuffix(path) + ".".join(layer[shared:])

    def layer_beside(self, name: str) -> str:
        """As :meth:`find_layer`, for those who cannot do without.

        Raises:
            ValueError: that name does not tell.
        """
        layer = self.find_layer(name)
        if layer is None:
            raise ValueError(
                f"{name}: expected the {self._kind} {self.name} beside the {self._kind_of_layer} {self.layer}, which "
                f"it was {self._became} into; save the model that was {self._became}, or a part or wrapper of it that "
                "has both"
            )
        return layer

    def extra_repr(self) -> str:
        """Where it is now, for ``print(model)``."""
        return f"into {self.layer}"
