"""Where layers live. The view asks for one layer at a time; no algorithm holds the layer list."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import nn


class Residency(Protocol):
    """Lends layers.

    Attributes:
        layer_major: a pass should run all batches through a layer before the next one.
        n_resident: so many layers, once lent, stay in memory until others are asked for.
        state_bytes: of hidden states that a pass may keep in memory between layers; None: a share of what is free.
    """

    layer_major: bool
    n_resident: int
    state_bytes: int | None

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights on the compute device, valid inside the ``with`` block only."""
        ...

    def settle(self, layers: Collection[int]) -> None:
        """No other layer is needed for a while: where memory is scarce, hold none, and give the system back what was freed."""
        ...


class Resident:
    """All layers in memory."""

    layer_major = False
    state_bytes: int | None = None

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = layers
        self.n_resident = len(layers)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        yield self._layers[index]

    def settle(self, layers: Collection[int]) -> None:
        """Nothing: all layers stay, and so do freed blocks, which the next step then need not fetch."""
