"""A plan: which edits turn the source into the student. Plain data, readable and editable by hand.

Edits name layers of the teacher, 0-based. Values (refitted tensors, trained replacements) live beside the plan in
safetensors; the plan itself holds no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from shoal.words.edits import MOST_LAYERS, Drop, Edit, Replace
from shoal.words.records import Record
from shoal.words.types import Unit, spans_of


class Size(Record):
    """Layers and parameters (tied ones once, every module of the checkpoint counted)."""

    layers: int
    parameters: int


class Candidate(Record):
    """One plan the guard looked at: the layers out, who proposed it, and its measured cost on ``selection``.

    ``kl`` and what follows are of the student as it would be kept: repaired where the plan will be repaired, and then
    ``kl_plain`` is that of the plain cut.
    """

    layers: tuple[int, ...]
    proposed_by: tuple[str, ...]
    scores: dict[str, float] = {}
    kl: float | None = None
    kl_plain: float | None = None
    kl_stderr: float | None = None
    perplexity: float | None = None


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
        edits: in any order; they may not touch one layer twice.
        before, after: predicted sizes, *net* of replacements.
        method: how the plan was chosen, for people.
        candidates: what the guard compared, best first.
        spread: what the selector alone would have chosen on disjoint parts of the calibration text, most frequent first.
    """

    source: str
    source_hash: str
    teacher: str
    n_layers: int = Field(ge=1, le=MOST_LAYERS)
    edits: tuple[Edit, ...] = ()
    before: Size
    after: Size
    method: str = ""
    candidates: tuple[Candidate, ...] = ()
    spread: tuple[PartChoice, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Plan:
        seen: set[int] = set()
        for edit in self.edits:
            if isinstance(edit, Replace) and not 0 <= edit.start < edit.stop <= self.n_layers:
                raise ValueError(f"replace [{edit.start}, {edit.stop}) is not a span of this {self.n_layers}-layer model")
            touched = (
                edit.indices if isinstance(edit, Drop) else edit.span.layers if isinstance(edit, Replace) else (edit.layer,)
            )
            for layer in touched:
                if not 0 <= layer < self.n_layers:
                    raise ValueError(f"layer {layer} is not in 0..{self.n_layers - 1}")
                if isinstance(edit, Drop) and edit.kind != "layer":
                    continue
                if layer in seen:
                    raise ValueError(f"layer {layer} is edited twice")
                seen.add(layer)
        if not self.kept_layers and not self.replacements:
            raise ValueError("the plan removes every layer; keep at least one")
        return self

    @property
    def dropped_units(self) -> frozenset[Unit]:
        return frozenset(Unit(edit.kind, i) for edit in self.edits if isinstance(edit, Drop) for i in edit.indices)

    @property
    def replacements(self) -> tuple[Replace, ...]:
        return tuple(sorted((e for e in self.edits if isinstance(e, Replace)), key=lambda e: e.start))

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Layers of the source that are gone, replaced ones included."""
        dropped = {unit.index for unit in self.dropped_units if unit.kind == "layer"}
        replaced = {layer for edit in self.replacements for layer in edit.span.layers}
        return tuple(sorted(dropped | replaced))

    @property
    def kept_layers(self) -> tuple[int, ...]:
        removed = set(self.removed_layers)
        return tuple(layer for layer in range(self.n_layers) if layer not in removed)

    @property
    def is_pure_removal(self) -> bool:
        """True when every edit drops whole layers: the checkpoint can be cut file to file."""
        return all(isinstance(edit, Drop) and edit.kind == "layer" for edit in self.edits)

    def __str__(self) -> str:
        said = describe_removal(self.removed_layers, self.n_layers)
        for edit in self.replacements:
            said += f"; one {edit.replacement!r} in place of {edit.start}..{edit.stop - 1}"
        return f"{said}; {self.before.layers} -> {self.after.layers} layers"


def describe_removal(layers: Sequence[int], n_layers: int) -> str:
    """``layers 8..11 (0-based, inclusive), keeps 12``."""
    if not layers:
        return f"nothing removed, keeps {n_layers}"
    runs = ", ".join(str(s.start) if s.n == 1 else f"{s.start}..{s.stop - 1}" for s in spans_of(layers))
    return f"layers {runs} (0-based, inclusive), keeps {n_layers - len(set(layers))}"


def describe_short(layers: Sequence[int]) -> str:
    """``8..11, 14``."""
    return ", ".join(str(run.start) if run.n == 1 else f"{run.start}..{run.stop - 1}" for run in spans_of(layers))
