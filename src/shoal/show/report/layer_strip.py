"""The layers in a row: which stay, which are gone, which got a module in their place, which got new values."""

from __future__ import annotations

from shoal.edits.base import Fate
from shoal.edits.plan import Plan
from shoal.show.html import Html, tag
from shoal.words.structure import SUBLAYERS


def fates(plan: Plan) -> list[Fate]:
    """One per layer of the source: what a structural edit made of it, else which sublayers are off, else its new values."""
    off = {slot.like: [SUBLAYERS[kind] for kind in SUBLAYERS if kind in slot.off] for slot in plan.structure}
    kept = set(plan.kept_layers)
    found = []
    for layer in range(plan.n_layers):
        told = [fate for edit in plan.edits if (fate := edit.fate(layer)) is not None]
        if off.get(layer) and layer in kept:
            told.insert(0, Fate("part", f"kept without its {' and '.join(off[layer])}"))
        found.append(told[0] if told else Fate("kept", "kept"))
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
