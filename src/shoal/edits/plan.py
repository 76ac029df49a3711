"""A plan: which edits turn the source into the student. Plain data, readable and editable by hand.

Edits name layers of the source, 0-based. Values (refitted tensors, trained replacements) live beside the plan in safetensors;
the plan itself holds no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from shoal.edits.base import MOST_LAYERS
from shoal.edits.insert import Insert
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.table import Edit
from shoal.words.records import Record, stable_hash
from shoal.words.structure import (
    SUBLAYERS,
    Size,
    Structure,
    absent_layers,
    describe,
    inserted,
    intact,
    kept_layers,
    runs_said,
    stored,
    units_of,
    units_off,
    units_said,
)
from shoal.words.types import Unit


class Candidate(Record):
    """One way to cut that was looked at: its edits, who proposed it, and its measured cost on ``selection``.

    ``kl`` and what follows are of the student as it would be kept: repaired where the plan will be repaired, and then
    ``kl_plain`` is that of the plain cut and ``repaired_on`` says on how many tokens; figures of candidates that dropped out
    earlier rest on fewer, and cannot be held against the others'.
    """

    edits: tuple[Edit, ...]
    proposed_by: tuple[str, ...] = ()
    scores: dict[str, float] = {}
    kl: float | None = None
    kl_plain: float | None = None
    repaired_on: int | None = None
    kl_stderr: float | None = None
    perplexity: float | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Whole layers that its student lacks before anything in it is trained."""
        n_layers = max((edit.n_layers_needed() for edit in self.edits), default=0)
        return absent_layers(structure_of(self.edits, n_layers), n_layers)

    @property
    def units(self) -> frozenset[Unit]:
        """What its student lacks before anything in it is trained, sublayers included."""
        n_layers = max((edit.n_layers_needed() for edit in self.edits), default=0)
        return units_of(structure_of(self.edits, n_layers), n_layers)

    def __str__(self) -> str:
        return units_said(self.units)


class PartChoice(Record):
    """What the selector would have chosen on ``n_parts`` of the disjoint parts of the calibration text."""

    layers: tuple[int, ...]
    n_parts: int


class Plan(Record):
    """What to do to ``source``.

    Attributes:
        source: name or path of the model being cut; ``source_hash`` its identity (config and weights).
        teacher: the reference model; the source itself unless the source is already a student.
        n_layers: layers of the source; every index in ``edits`` is below it.
        edits: in order. Those that change the structure may not touch one unit twice; those that only write values compose.
        before, after: predicted sizes, *net* of replacements; what a sublayer that is off would read does not count.
        removed: the share of what goes, from 0 to 1, by what it is a share of: ``layers``, ``sublayers``, ``parameters``, and
            of an opened model ``kv`` (cache), ``macs`` and, where it was measured, ``latency``.
        method: how the plan was chosen, for people.
        chosen: a hash of the structural edits as they were chosen; it differs where somebody edited the plan by hand.
        candidates: what the tournament compared, best first.
        spread: what the selector alone would have chosen on disjoint parts of the calibration text, most frequent first.
    """

    source: str
    source_hash: str
    teacher: str
    n_layers: int = Field(ge=1, le=MOST_LAYERS)
    edits: tuple[Edit, ...] = ()
    before: Size
    after: Size
    removed: dict[str, float] = {}
    method: str = ""
    chosen: str = ""
    candidates: tuple[Candidate, ...] = ()
    spread: tuple[PartChoice, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Plan:
        check_edits(self.edits, self.n_layers)
        return self

    @property
    def structure(self) -> Structure:
        """What the student is."""
        return structure_of(self.edits, self.n_layers)

    @property
    def n_layers_after(self) -> int:
        """Layers of the student's checkpoint."""
        return len(stored(self.structure))

    @property
    def removed_units(self) -> frozenset[Unit]:
        """What is zeroed with nothing in its place: removed layers that no module stands for, and sublayers that are off."""
        replaced = {unit for edit in self.edits if edit.replaces() for unit in edit.touches()}
        gone = {Unit("layer", layer) for layer in self.removed_layers}
        return frozenset(gone - replaced) | units_off(self.structure)

    @property
    def replacements(self) -> tuple[Replace, ...]:
        return tuple(sorted((e for e in self.edits if isinstance(e, Replace)), key=lambda e: e.start))

    @property
    def kept_layers(self) -> tuple[int, ...]:
        return kept_layers(self.structure)

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Layers of the source that do not run as themselves, replaced ones included."""
        kept = set(self.kept_layers)
        return tuple(layer for layer in range(self.n_layers) if layer not in kept)

    @property
    def absent_layers(self) -> tuple[int, ...]:
        """Layers the student lacks before anything in it is trained: the removed ones but for those that are inherited."""
        return absent_layers(self.structure, self.n_layers)

    @property
    def is_pure_removal(self) -> bool:
        """True when every edit drops whole layers."""
        only_source = all(slot.is_of_source and not slot.off for slot in self.structure)
        return only_source and not any(edit.writes() for edit in self.edits)

    @property
    def is_changed(self) -> bool:
        """Whether layers or parts of them are gone, replaced or put in."""
        return bool(self.removed_layers or self.removed_units or inserted(self.structure))

    @property
    def is_of_whole_layers(self) -> bool:
        """True when the student is a row of the source's layers as they are stored; some may be gone, some stand twice."""
        return all(slot.is_as_stored for slot in self.structure) and not any(edit.writes() for edit in self.edits)

    @property
    def needs_no_weights(self) -> bool:
        """True when the checkpoint can be written file to file without opening the source: whole layers and zeros."""
        only_stored = all(slot.is_as_stored or slot.is_inserted and not slot.values for slot in self.structure)
        return only_stored and not any(edit.writes() for edit in self.edits)

    @property
    def brings_code(self) -> bool:
        """Whether its checkpoint needs code that comes with it."""
        return any(slot.is_hosted for slot in self.structure)

    @property
    def is_edited_by_hand(self) -> bool:
        """Whether somebody changed what was chosen."""
        return bool(self.chosen) and self.chosen != choice_hash(self.edits)

    def __str__(self) -> str:
        said = [describe(self.structure, self.n_layers), *filter(None, (edit.replaces() for edit in self.edits))]
        new = inserted(self.structure)
        if new:
            names = ", ".join(dict.fromkeys(edit.init for edit in self.edits if isinstance(edit, Insert)))
            said.append(f"{len(new)} new behind {runs_said(slot.place for slot in new)} ({names})")
        return f"{'; '.join(said)}; {self.before.layers} -> {self.after.layers} layers"


def structure_of(edits: Sequence[Edit], n_layers: int) -> Structure:
    """What edits make of a source with ``n_layers`` layers."""
    found = intact(n_layers)
    for edit in edits:
        found = edit.structure(found)
    return found


def choice_hash(edits: Sequence[Edit]) -> str:
    """Identity of the edits that change the structure; those that only write values come after the choice."""
    return stable_hash([edit.model_dump(mode="json") for edit in edits if edit.is_structural])


def check_edits(edits: Sequence[Edit], n_layers: int) -> None:
    """Refuse edits that do not go together.

    Raises:
        ValueError: a layer that does not exist, a unit that two edits touch, new values for a layer that is gone, nothing left.
    """
    seen: set[Unit] = set()
    for edit in edits:
        if not all(0 <= layer < n_layers for layer in edit.named_layers()):
            wrong = next(layer for layer in edit.named_layers() if not 0 <= layer < n_layers)
            raise ValueError(f"layer {wrong} is not in 0..{n_layers - 1}")
        for unit in sorted(edit.touches()):
            whole = Unit("layer", unit.index)
            inside = {Unit(kind, unit.index) for kind in SUBLAYERS} if unit == whole else {whole}
            if unit in seen or seen & inside:
                raise ValueError(f"layer {unit.index} is edited twice")
            seen.add(unit)
    _check_places(edits)
    structure = structure_of(edits, n_layers)
    own = set(kept_layers(structure))
    if all(slot.is_inserted for slot in structure):
        raise ValueError("the plan removes every layer; keep at least one")
    for edit in edits:
        for target in edit.writes():
            if isinstance(target, int) and target not in own:
                raise ValueError(f"layer {target} is edited twice: it is removed, and there are new values for it")


def _check_places(edits: Sequence[Edit]) -> None:
    """Raises ValueError for new layers put twice behind one layer, or inside a span that something else stands for."""
    new = [edit.after for edit in edits if isinstance(edit, Insert)]
    twice = next((after for after in new if new.count(after) > 1), None)
    if twice is not None:
        raise ValueError(f"new layers are put twice behind layer {twice}; name all of them in one edit")
    for edit in edits:
        if isinstance(edit, Replace):
            inside = next((after for after in new if edit.start <= after < edit.stop - 1), None)
            if inside is not None:
                raise ValueError(
                    f"new layers behind layer {inside} would stand inside layers {edit.start}..{edit.stop - 1}, which are "
                    f"replaced; put them behind layer {edit.stop - 1}"
                )
