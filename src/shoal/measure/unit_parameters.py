"""Which parameters of a layer belong to a unit: all of them to the layer, those of a sublayer's own module to the sublayer."""

from collections.abc import Mapping

from torch import Tensor, nn

from shoal.engine.families import sublayer
from shoal.words.types import Unit


def parameters_of(unit: Unit, layer: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters of a unit by their names inside the layer.

    Raises:
        ValueError: the family keeps no such sublayer as a module of its own.
    """
    named: Mapping[str, Tensor] = {name: one for name, one in layer.named_parameters() if one.is_floating_point()}
    if unit.kind == "layer":
        return dict(named)
    found = sublayer(layer, unit.kind)
    if found is None:
        raise ValueError(f"layer {unit.index} has no {unit.kind} sublayer as one module; score whole layers")
    return {name: one for name, one in named.items() if name.startswith(found[0] + ".")}
