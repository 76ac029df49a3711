"""The layers in a row: which stay, which are gone, which got a module in their place or new values, and which are new."""

from shoal.edits.base import Fate
from shoal.edits.plan import Plan
from shoal.show.html import Html, tag
from shoal.words.structure import SUBLAYERS, inserted


def fates(plan: Plan) -> list[Fate]:
    """One per layer of the source: what a structural edit made of it, else which sublayers are off, else its new values."""
    row = [slot for slot in plan.structure if not slot.is_inserted]
    off = {slot.like: [SUBLAYERS[kind] for kind in SUBLAYERS if kind in slot.off] for slot in row}
    kept = set(plan.kept_layers)
    found = []
    for layer in range(plan.n_layers):
        told = [fate for edit in plan.edits if (fate := edit.fate(layer)) is not None]
        if off.get(layer) and layer in kept:
            told.insert(0, Fate("part", f"kept without its {' and '.join(off[layer])}"))
        found.append(told[0] if told else Fate("kept", "kept"))
    return found


def strip(plan: Plan, trained: str = "") -> Html:
    """A row of boxes, and what their looks mean; ``trained``: how the whole student was trained behind the cut."""
    every = next(step for step in (1, 2, 5, 10, 20, 50) if plan.n_layers / step <= 24)
    found = fates(plan)
    behind: dict[int, list[int]] = {}
    for slot in inserted(plan.structure):
        behind.setdefault(slot.place, []).append(slot.like)
    boxes: list[Html] = []
    for layer, fate in enumerate(found):
        boxes.append(_box(fate.look, layer if layer % every == 0 else "", f"layer {layer}: {fate.words}"))
        boxes += [_box("new", "", f"behind layer {layer}: new, like layer {like}") for like in behind.get(layer, ())]
    row = tag("ol", boxes, class_="strip", role="img", aria_label=f"{plan.n_layers} layers of the teacher: {plan}")
    looks = {fate.look.split()[0] for fate in found} | ({"new"} if behind else set())
    return tag("figure", row, tag("figcaption", _key(looks, plan, trained)), class_="layers")


def _box(look: str, number: int | str, said: str) -> Html:
    """One box of the row, with the number under it where it has one."""
    under = tag("span", Html("&nbsp;") if number == "" else number, class_="number", aria_hidden="true")
    return tag("li", tag("span", class_="bar"), tag("span", class_="box"), under, class_=look, title=said)


def _key(looks: set[str], plan: Plan, trained: str) -> list[Html]:
    words = {"kept": "kept", "gone": "removed", "refitted": "kept, with new values", "part": "kept in part", "new": "new"}
    if plan.replacements:
        looks = looks | {"module"}
        words["module"] = "one module in their place"
    items = [(look, text) for look, text in words.items() if look in looks]
    keys = [tag("span", tag("span", class_=f"key {look}"), text, class_="key-item") for look, text in items]
    healed = f" Then healed as one: {trained}." if trained else ""
    return [*keys, tag("span", f"Layers of the teacher, numbered from 0.{healed}")]
