"""How a quantisation method stores a linear map: the tensors that stand for one weight, and the weight they stand for."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Parts = Mapping[str, Tensor]
"""The tensors of one weight, by what their names have behind the name of the module."""


def no_reason(stated: Mapping[str, Any]) -> str | None:
    """Of methods that have one variant."""
    return None


@dataclass(frozen=True)
class PackedForm:
    """One way to store a weight.

    Attributes:
        codes: ending of the name of the packed numbers.
        needs: endings of what must stand beside them, which tell this form from others.
        unpack: parts and the quantisation section of the config to the weight, float32, as an unquantised checkpoint has it.
        may: endings of what may stand beside them and is read.
        weight: ending of the name of the weight in an unquantised checkpoint.
    """

    codes: str
    needs: tuple[str, ...]
    unpack: Callable[[Parts, Mapping[str, Any]], Tensor]
    may: tuple[str, ...] = ()
    weight: str = ".weight"


@dataclass(frozen=True)
class PackedWeight:
    """One weight of a quantised checkpoint: the name it gets, its form, and where its parts are, by their endings."""

    name: str
    form: PackedForm
    parts: Mapping[str, str]


@dataclass(frozen=True)
class PackingMethod:
    """A method.

    Attributes:
        method: as ``quant_method`` states it.
        forms: tried in this order.
        unused: endings of tensors that say how activations are rounded, which plain weights have no use for.
        refuses: the quantisation section of a config to the reason why it cannot be unpacked, or None.
    """

    method: str
    forms: tuple[PackedForm, ...]
    unused: tuple[str, ...] = ()
    refuses: Callable[[Mapping[str, Any]], str | None] = no_reason

    def stored(self, names: Collection[str]) -> dict[str, PackedWeight]:
        """The weights that are packed, by the name of their codes."""
        found: dict[str, PackedWeight] = {}
        there = set(names)
        for form in self.forms:
            for name in names:
                stem = name.removesuffix(form.codes)
                if name in found or stem == name or not all(stem + ending in there for ending in form.needs):
                    continue
                endings = (form.codes, *form.needs, *(ending for ending in form.may if stem + ending in there))
                found[name] = PackedWeight(stem + form.weight, form, {ending: stem + ending for ending in endings})
        return found
