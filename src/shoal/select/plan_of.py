"""From a candidate to a plan: its edits, the sizes before and after, and how it was chosen."""

from collections.abc import Mapping, Sequence

from shoal.edits.plan import Candidate, PartChoice, Plan, check_edits, choice_hash, structure_of
from shoal.edits.table import Edit
from shoal.select.amounts import Amounts
from shoal.select.model_size import ModelSize
from shoal.words.structure import Size, Structure, stored
from shoal.words.types import Unit

COUNTED = ("bytes", "active")
"""Amounts that a plan states before and after, beside its layers and parameters."""


def plan_of(
    edits: Sequence[Edit],
    size: ModelSize,
    *,
    source: str,
    source_hash: str,
    own_parameters: int = 0,
    teacher: str | None = None,
    method: str = "",
    candidates: Sequence[Candidate] = (),
    spread: Sequence[PartChoice] = (),
    amounts: Mapping[str, Amounts] | None = None,
) -> Plan:
    """The plan with these edits.

    Args:
        own_parameters: of each module that is no layer of the checkpoint.
        teacher: the source itself unless given.
        amounts: what else leaves with units, by its name.
    Raises:
        ValueError: a layer that does not exist, or edits that do not go together.
    """
    check_edits(edits, size.n_layers)
    structure, amounts = structure_of(edits, size.n_layers), amounts or {}
    before, after = sizes_of(structure, size, own_parameters=own_parameters, amounts=amounts)
    return Plan(
        source=source,
        source_hash=source_hash,
        teacher=teacher or source,
        n_layers=size.n_layers,
        edits=tuple(edits),
        before=before,
        after=after,
        removed=removed_shares(structure, size, own_parameters=own_parameters, amounts=amounts),
        method=method,
        chosen=choice_hash(edits),
        candidates=tuple(candidates),
        spread=tuple(spread),
    )


def sizes_of(
    structure: Structure, size: ModelSize, *, own_parameters: int = 0, amounts: Mapping[str, Amounts]
) -> tuple[Size, Size]:
    """Before and after: layers, parameters, and those amounts that a size states."""
    counted = {name: amounts[name] for name in COUNTED if name in amounts}
    before = size.before.model_copy(update={name: round(one.total) for name, one in counted.items()})
    left = {name: round(one.total - amount_gone(structure, one)) for name, one in counted.items()}
    return before, size.after(structure, own_parameters).model_copy(update=left)


def removed_shares(
    structure: Structure, size: ModelSize, *, own_parameters: int = 0, amounts: Mapping[str, Amounts]
) -> dict[str, float]:
    """What a student lacks, from 0 to 1: layers, sublayers, parameters, and of each amount; net of what is put back.

    A share of which more was put in than removed is left out: nothing of it is gone.
    """
    layers, n = stored(structure), size.n_layers
    there = sum(2 - len(slot.off) for slot in layers)
    found = {
        "layers": 1 - len(layers) / n,
        "sublayers": 1 - there / (2 * n),
        "parameters": 1 - size.after(structure, own_parameters).parameters / size.total,
    }
    for name, one in amounts.items():
        found[name] = amount_gone(structure, one) / one.total if one.total else 0.0
    return {name: round(share, 6) for name, share in found.items() if share >= 0}


def amount_gone(structure: Structure, amounts: Amounts) -> float:
    """What a student lacks of one resource; what is put in place of layers counts as the layers that it is like."""
    layers = stored(structure)
    stays = sum(amounts.of_unit.get(Unit("layer", slot.like), 0.0) for slot in layers)
    stays -= sum(amounts.of_unit.get(Unit(kind, slot.like), 0.0) for slot in layers for kind in slot.off)
    return sum(amount for unit, amount in amounts.of_unit.items() if unit.kind == "layer") - stays
