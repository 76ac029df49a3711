"""Structure: what a student *is*, as one value that everything else follows from.

A structure is the row of what runs between embedding and final norm, in the order of the stream: which layer of the source each
slot behaves like, whether a layer or a module of the residual stream runs there, and which of its sublayers are off. Size,
config, order of writing, cache and the pictures of a student are functions of it. Layers may be repeated and inserted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shoal.words.records import Record
from shoal.words.types import Unit, UnitKind, spans_of

SublayerKind = Literal["attn", "mlp"]
SUBLAYERS: dict[UnitKind, str] = {"attn": "attention", "mlp": "MLP"}


class Size(Record):
    """Layers and parameters (tied ones once, every module of the checkpoint counted).

    ``bytes`` of the weights and the parameters that one token meets (``active``) where they were counted.
    """

    layers: int
    parameters: int
    bytes: int | None = None
    active: int | None = None


@dataclass(frozen=True)
class Slot:
    """One place of the stream.

    Attributes:
        like: the source layer whose arguments (masks, rotary embeddings) and config entry it has.
        runs: a layer of the family, or a module of the residual stream.
        off: sublayers whose contribution to the stream is zero.
        values: what the names of its values beside the plan begin with, where they are all its own; empty where it is the
            source's layer ``like``, perhaps with new values for some of its parameters.
        is_hosted: a module that the checkpoint keeps inside the layer before it, so that it is no layer of its own there.
        after: the place of the source behind which it was put in; None where it stands in the source's own row.
        is_silent: a new layer whose output maps are zero until it is trained. Unlike one that lacks sublayers it counts whole.
    """

    like: int
    runs: Literal["layer", "module"] = "layer"
    off: frozenset[SublayerKind] = frozenset()
    values: str = ""
    is_hosted: bool = False
    after: int | None = None
    is_silent: bool = False

    @property
    def is_inserted(self) -> bool:
        """Whether it was put in beside the source's own row."""
        return self.after is not None

    @property
    def is_of_source(self) -> bool:
        """Whether the source's own layer runs here, in its own place."""
        return self.runs == "layer" and not self.values and not self.is_inserted

    @property
    def is_as_stored(self) -> bool:
        """Whether the weights of the source's layer ``like`` run here, whole: in its own place, or once more."""
        return self.runs == "layer" and not (self.values or self.off or self.is_silent)

    @property
    def place(self) -> int:
        """The place of the source's row where it stands, or behind which it was put in."""
        return self.like if self.after is None else self.after


Structure = tuple[Slot, ...]


def intact(n_layers: int) -> Structure:
    """The structure of the source itself."""
    return tuple(Slot(layer) for layer in range(n_layers))


def stored(structure: Structure) -> Structure:
    """The slots that are layers of the checkpoint, in its order."""
    return tuple(slot for slot in structure if not slot.is_hosted)


def inserted(structure: Structure) -> Structure:
    """The slots that were put in beside the source's own row."""
    return tuple(slot for slot in structure if slot.is_inserted)


def with_inserted(structure: Structure, new: Structure) -> Structure:
    """The structure with new slots, all put in behind one place of the source's row; earlier ones of that place come first."""
    assert new and len({slot.after for slot in new}) == 1
    at = sum(slot.place <= new[0].place for slot in structure)
    assert all(slot.place <= new[0].place for slot in structure[:at]), "slots stand in the order of their places"
    return (*structure[:at], *new, *structure[at:])


def kept_layers(structure: Structure) -> tuple[int, ...]:
    """Layers of the source that still run as themselves, in the order of the stream; sublayers may be off."""
    return tuple(slot.like for slot in structure if slot.is_of_source)


def units_off(structure: Structure) -> frozenset[Unit]:
    """Sublayers of layers that run, whose contribution is zero."""
    return frozenset(Unit(kind, slot.like) for slot in structure if not slot.is_inserted for kind in slot.off)


def units_of(structure: Structure, n_layers: int) -> frozenset[Unit]:
    """Units a student lacks before anything in it is trained: whole layers, and sublayers of those that run."""
    gone = {Unit("layer", layer) for layer in absent_layers(structure, n_layers)}
    return units_off(structure) | gone


def units_said(units: Iterable[Unit]) -> str:
    """``8..11, attention of 14``; ``nothing`` for none."""
    found = set(units)
    parts = [runs_said(unit.index for unit in found if unit.kind == "layer")]
    for kind, name in SUBLAYERS.items():
        some = [unit.index for unit in found if unit.kind == kind]
        parts.append(f"{name} of {runs_said(some)}" if some else "")
    return ", ".join(part for part in parts if part) or "nothing"


def without_sublayer(structure: Structure, kind: SublayerKind, layers: Iterable[int]) -> Structure:
    """The structure with one kind of sublayer off in some layers of the source."""
    gone = set(layers)
    return tuple(
        replace(slot, off=slot.off | {kind}) if slot.like in gone and slot.is_of_source else slot for slot in structure
    )


def runs_said(layers: Iterable[int]) -> str:
    """``8..11, 14``."""
    return ", ".join(str(run.start) if run.n == 1 else f"{run.start}..{run.stop - 1}" for run in spans_of(layers))


def describe_removal(layers: Sequence[int], n_layers: int) -> str:
    """``layers 8..11 (0-based, inclusive), keeps 12``."""
    if not layers:
        return f"nothing removed, keeps {n_layers}"
    return f"layers {runs_said(layers)} (0-based, inclusive), keeps {n_layers - len(set(layers))}"


def describe_units(units: Iterable[Unit], n_layers: int) -> str:
    """What is gone, for people: whole layers, then sublayers of those that stay."""
    found = set(units)
    layers = sorted(unit.index for unit in found if unit.kind == "layer")
    if len(layers) == len(found):
        return describe_removal(layers, n_layers)
    whole = "layers " if layers else ""
    return f"{whole}{units_said(found)} (0-based, inclusive) removed, keeps {n_layers - len(layers)} layers"


def describe(structure: Structure, n_layers: int) -> str:
    """What of the source does not run as itself, for people."""
    gone = {Unit("layer", layer) for layer in set(range(n_layers)) - set(kept_layers(structure))}
    return describe_units(gone | units_off(structure), n_layers)


def absent_layers(structure: Structure, n_layers: int) -> tuple[int, ...]:
    """Layers of the source that no layer in its own row behaves like: an untrained student lacks them."""
    like = {slot.like for slot in structure if slot.runs == "layer" and not slot.is_inserted}
    return tuple(layer for layer in range(n_layers) if layer not in like)
