"""A stock layer of the family as a module of its own, called as the family calls it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from shoal.engine.view import DecoderView


class InheritedLayer(nn.Module):
    """Surgery puts ``layer`` into a checkpoint."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def inherited_layer(view: DecoderView, index: int) -> InheritedLayer:
    """A copy of a layer with parameters of its own.

    Raises:
        ValueError: its weights are quantised (packed integers), so they cannot be trained.
    """
    with view.residency.layer(index) as layer:
        packed = [name for name, parameter in layer.named_parameters() if not parameter.is_floating_point()]
        if packed:
            raise ValueError(
                f"layer {index} of this {view.family} model is quantised ({packed[0]!r} holds integers) and cannot be "
                "trained; use --replace none, or start from the unquantised model, or from what shoal export plain makes of it"
            )
        return InheritedLayer(copy.deepcopy(layer).eval())
