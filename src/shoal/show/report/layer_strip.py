"""The layers in a row: which stay, which are gone, which got a module in their place, which got new values."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.show.html import Html, tag
from shoal.words.edits import Drop, Refit
from shoal.words.plan import Plan

SUBLAYERS = {"attn": "attention", "mlp": "MLP"}


@dataclass(frozen=True)
class Fate:
    """What became of a layer: the look of its box, and the words."""

    look: str
    words: str


def fates(plan: Plan) -> list[Fate]:
    """One per layer of the teacher."""
    replaced = {layer: edit for edit in plan.replacements for layer in edit.span.layers}
    refitted = {edit.layer for edit in plan.edits if isinstance(edit, Refit)}
    cut = {(edit.kind, layer) for edit in plan.edits if isinstance(edit, Drop) for layer in edit.indices}
    removed = set(plan.removed_layers)
    found = []
    for layer in range(plan.n_layers):
        off = [name for kind, name in SUBLAYERS.items() if (kind, layer) in cut]
        if layer in replaced:
            edit = replaced[layer]
            last = " last" if layer == edit.stop - 1 else ""
            found.append(
                Fate(f"gone module{last}", f"removed, one {edit.replacement!r} in place of {edit.start}..{edit.stop - 1}")
            )
        elif layer in removed:
            found.append(Fate("gone", "removed"))
        elif off:
            found.append(Fate("part", f"kept without its {' and '.join(off)}"))
        elif layer in refitted:
            found.append(Fate("refitted", "kept, with new values"))
        else:
            found.append(Fate("kept", "kept"))
    return found


def strip(plan: Plan) -> Html:
    """A row of boxes, and what their looks mean."""
    every = next(step for step in (1, 2, 5, 10, 20, 50) if plan.n_layers / step <= 24)
    found = fates(plan)
    boxes = [
        tag(
            "li",
            tag("span", class_="bar"),
            tag("span", class_="box"),
            tag("span", layer if layer % every == 0 else Html("&nbsp;"), class_="number", aria_hidden="true"),
            class_=fate.look,
            title=f"layer {layer}: {fate.words}",
        )
        for layer, fate in enumerate(found)
    ]
    row = tag("ol", boxes, class_="strip", role="img", aria_label=f"{plan.n_layers} layers of the teacher: {plan}")
    return tag("figure", row, tag("figcaption", _key({fate.look.split()[0] for fate in found}, plan)), class_="layers")


def _key(looks: set[str], plan: Plan) -> list[Html]:
    words = {"kept": "kept", "gone": "removed", "refitted": "kept, with new values", "part": "kept in part"}
    if plan.replacements:
        looks = looks | {"module"}
        words["module"] = "one module in their place"
    items = [(look, text) for look, text in words.items() if look in looks]
    keys = [tag("span", tag("span", class_=f"key {look}"), text, class_="key-item") for look, text in items]
    return [*keys, tag("span", "Layers of the teacher, numbered from 0.")]
