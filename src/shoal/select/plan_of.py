"""From the layers that go to a plan: the edits, the sizes before and after, and how it was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate, PartChoice, Plan
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.table import Edit
from shoal.select.model_size import ModelSize, PutBack


def plan_of(
    layers: Sequence[int],
    size: ModelSize,
    *,
    put_back: PutBack,
    source: str,
    source_hash: str,
    teacher: str | None = None,
    method: str = "",
    candidates: Sequence[Candidate] = (),
    spread: Sequence[PartChoice] = (),
) -> Plan:
    """The plan whose student, before any replacement is trained, lacks exactly ``layers``.

    Args:
        layers: of the source; each of their runs gets its own replacement. One that inherits takes over the layers before
            its run too, and starts as a copy of them.
        teacher: the source itself unless given.
    Raises:
        ValueError: a layer that does not exist, all layers, or a replacement that has no layer to inherit.
    """
    removed = tuple(sorted(set(layers)))
    edits: tuple[Edit, ...]
    if put_back.name != "none":
        edits = tuple(
            Replace(start=span.start, stop=span.stop, replacement=put_back.name, options=dict(put_back.options))
            for span in put_back.replaced(removed)
        )
    else:
        edits = (Drop(indices=removed),) if removed else ()
    outside = [layer for layer in removed if not 0 <= layer < size.n_layers]
    if outside:
        raise ValueError(f"layer {outside[0]} is not in 0..{size.n_layers - 1}")
    return Plan(
        source=source,
        source_hash=source_hash,
        teacher=teacher or source,
        n_layers=size.n_layers,
        edits=edits,
        before=size.before,
        after=size.after(removed, put_back),
        method=method,
        candidates=tuple(candidates),
        spread=tuple(spread),
    )
