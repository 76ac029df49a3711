"""From a candidate to a plan: its edits, the sizes before and after, and how it was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.edits.plan import Candidate, PartChoice, Plan, check_edits, choice_hash, structure_of
from shoal.edits.table import Edit
from shoal.select.model_size import ModelSize


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
) -> Plan:
    """The plan with these edits.

    Args:
        own_parameters: of each module that is no layer of the checkpoint.
        teacher: the source itself unless given.
    Raises:
        ValueError: a layer that does not exist, or edits that do not go together.
    """
    check_edits(edits, size.n_layers)
    return Plan(
        source=source,
        source_hash=source_hash,
        teacher=teacher or source,
        n_layers=size.n_layers,
        edits=tuple(edits),
        before=size.before,
        after=size.after(structure_of(edits, size.n_layers), own_parameters),
        method=method,
        chosen=choice_hash(edits),
        candidates=tuple(candidates),
        spread=tuple(spread),
    )
