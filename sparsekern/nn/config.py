"""What to make of which layer: ``Sparse``, and name patterns over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ..layouts import Granularity
from ..prune import CRITERIA, check_sparsity


@dataclass(frozen=True)
class Sparse:
    """Make a layer sparse.

    Args:
        granularity: weights that are kept or dropped together, such as ``Block(16, 1)``.
        sparsity: share of the weights to drop, in [0, 1). None for granularities that imply it.
        criterion: how weights are scored where no calibration data is given.
        only_if_faster: leave the layer dense where the example inputs do not show that sparse is faster.

    Raises:
        TypeError: an argument of another type.
        ValueError: a sparsity outside [0, 1), or an unknown criterion.
    """

    granularity: Granularity
    sparsity: float | None = None
    criterion: str = "magnitude"
    only_if_faster: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.granularity, Granularity):
            raise TypeError(f"Sparse: expected a granularity such as Block(16, 1), got {self.granularity!r}")
        check_sparsity(self.sparsity, "Sparse: sparsity")
        if self.criterion not in CRITERIA:
            raise ValueError(f"Sparse: expected a criterion of {', '.join(CRITERIA)}, got {self.criterion!r}")
        if not isinstance(self.only_if_faster, bool):
            raise TypeError(f"Sparse: expected only_if_faster to be True or False, got {self.only_if_faster!r}")


Config = Sparse | Mapping[str, Sparse | None]
"""For every layer, or by name pattern (``fnmatch``; the first match wins; None = stay dense)."""


def check_config(config: Config) -> None:
    """Refuse anything but a ``Sparse`` or a dict of name pattern to ``Sparse`` or None."""
    if isinstance(config, Granularity):
        if config.implied_sparsity is not None:
            raise TypeError(f"config: {config!r} is a granularity and no configuration; write Sparse({config!r})")
        raise TypeError(f"config: {config!r} says nothing about sparsity; write Sparse({config!r}, sparsity)")
    if not isinstance(config, (Sparse, Mapping)):
        raise TypeError(f"config: expected a Sparse or a dict of name pattern to Sparse or None, got {config!r}")
    if isinstance(config, Mapping):
        for pattern, value in config.items():
            if not isinstance(pattern, str):
                raise TypeError(f"config: expected name patterns as keys, got {pattern!r}")
            if value is not None and not isinstance(value, Sparse):
                raise TypeError(f"config[{pattern!r}]: expected a Sparse or None (stay dense), got {value!r}")


def resolve(config: Config, layers: Sequence[tuple[str, ...]]) -> list[tuple[Sparse | None, str]]:
    """Find each layer's configuration.

    Args:
        config: what the user gave.
        layers: all the names of each layer; a shared module has several.

    Returns:
        For each layer its configuration, or None and the reason to leave it dense.

    Raises:
        TypeError: see :func:`check_config`.
        ValueError: a pattern that matches no layer.
    """
    check_config(config)
    if isinstance(config, Sparse):
        return [(config, "")] * len(layers)
    for pattern in config:
        if not any(fnmatchcase(name, pattern) for names in layers for name in names):
            raise ValueError(
                f"config: {pattern!r} matches no Linear or Conv2d layer of the model{_hint(pattern, layers)}"
            )
    return [_first_match(config, names) for names in layers]


def names_exactly(config: Config, names: tuple[str, ...]) -> bool:
    """Whether the configuration of a layer stands under one of its names, and not under a pattern for many."""
    if isinstance(config, Sparse):
        return False
    matching = (pattern for pattern in config if any(fnmatchcase(name, pattern) for name in names))
    return next(matching, None) in names


def _first_match(config: Mapping[str, Sparse | None], names: tuple[str, ...]) -> tuple[Sparse | None, str]:
    for pattern, value in config.items():
        if any(fnmatchcase(name, pattern) for name in names):
            return value, "" if value else f"config says so ({pattern!r}: None)"
    return None, "no pattern of the config matches"


def _hint(pattern: str, layers: Sequence[tuple[str, ...]]) -> str:
    known = [name for names in layers for name in names]
    close = get_close_matches(pattern, known, n=3, cutoff=0.4) or known[:3]
    return f"; there is for example {', '.join(map(repr, close))}" if close else ", which has none"
