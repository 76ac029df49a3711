"""Units by number, as people write them: ``6``, ``4,6,20..24``, ``attn:5..8``, ``-1`` from the end. Ranges hold both ends."""

import re
from dataclasses import dataclass

from shoal.words.reading import shortened
from shoal.words.structure import SUBLAYERS
from shoal.words.types import Unit, UnitKind

PART = re.compile(r"(?:([a-z]+):)?\s*(-?[0-9]{1,6})(?:\.\.(-?[0-9]{1,6}))?")
KINDS: dict[str, UnitKind] = {"layers": "layer", "layer": "layer", "attn": "attn", "attention": "attn", "mlp": "mlp"}
FORMS = "6, 4,6,20..24, -1 from the end, attn:5..8 or mlp:3"


@dataclass(frozen=True)
class NamedRun:
    """One part between commas: units of a kind from ``first`` to ``last``, both meant; negative ones count from the end."""

    kind: UnitKind
    first: int
    last: int
    text: str


def parse_units(text: str, *, option: str) -> tuple[NamedRun, ...]:
    """Read a list of units. A kind holds until another is written: ``attn:5,7`` is the attention of both.

    ``none`` removes nothing: for runs that do something else to the model.

    Args:
        option: that they were given to, for the message.
    Raises:
        ValueError: no unit, or another form.
    """
    if text.strip() == "none" and option == "--layers":
        return ()
    if not text.strip():
        raise ValueError(f"{option} {text!r} names no layer; write {FORMS}")
    found: list[NamedRun] = []
    kind: UnitKind = "layer"
    for part in text.split(","):
        named = PART.fullmatch(part.strip())
        if named is None or (named[1] and named[1] not in KINDS):
            raise ValueError(
                f"{option} {shortened(text)!r}: {shortened(part.strip())!r} is no layer and no range; write {FORMS}"
            )
        kind = KINDS[named[1]] if named[1] else kind
        found.append(NamedRun(kind, int(named[2]), int(named[3] or named[2]), part.strip()))
    return tuple(found)


def units_named(text: str, n_layers: int, *, option: str) -> frozenset[Unit]:
    """The units of a model that a text names.

    Raises:
        ValueError: as :func:`parse_units`; a layer that the model has not, a range that runs backwards.
    """
    found: set[Unit] = set()
    for one in parse_units(text, option=option):
        ends = [layer + n_layers if layer < 0 else layer for layer in (one.first, one.last)]
        if not all(0 <= layer < n_layers for layer in ends):
            raise ValueError(
                f"{option} {shortened(text)}: {one.text} is not within 0..{n_layers - 1}, the layers of this model"
            )
        if ends[0] > ends[1]:
            raise ValueError(f"{option} {shortened(text)}: {one.text} runs backwards; write the smaller layer first")
        found.update(Unit(one.kind, layer) for layer in range(ends[0], ends[1] + 1))
    return frozenset(found)


def removed_by_hand(layers: str | None, keep: str | None, n_layers: int) -> frozenset[Unit]:
    """What is to go, where it is named (``layers``) or all but what is named (``keep``).

    Raises:
        ValueError: both or none of them; as :func:`units_named`; nothing or everything would go; a sublayer of a layer that
            goes as a whole; single sublayers to keep.
    """
    if (layers is None) == (keep is None):
        raise ValueError("say what goes or what stays: either --layers 4,6 or --keep 0..15")
    if keep is not None:
        stays = units_named(keep, n_layers, option="--keep")
        if any(unit.kind != "layer" for unit in stays):
            raise ValueError(
                f"--keep {shortened(keep)} names layers that stay whole; single sublayers that go are --layers attn:5"
            )
        gone = frozenset(Unit("layer", layer) for layer in range(n_layers)) - stays
        if not gone:
            raise ValueError(f"--keep {shortened(keep)} keeps all {n_layers} layers, so nothing is removed; name fewer")
        return gone
    assert layers is not None
    gone = units_named(layers, n_layers, option="--layers")
    whole = {unit.index for unit in gone if unit.kind == "layer"}
    if len(whole) == n_layers:
        raise ValueError(f"--layers {shortened(layers)} removes all {n_layers} layers; at least one has to stay")
    twice = min((unit for unit in gone if unit.kind != "layer" and unit.index in whole), default=None)
    if twice is not None:
        raise ValueError(
            f"--layers {shortened(layers)}: layer {twice.index} goes as a whole; leave out its {SUBLAYERS[twice.kind]}"
        )
    return gone
