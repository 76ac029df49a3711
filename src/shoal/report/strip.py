"""The layers in a row: which stay, which are gone, which got a module in their place, which got new values."""

from __future__ import annotations

from shoal.plan import Drop, Plan, Refit
from shoal.report.html import Html, tag

WIDTH, HEIGHT = 840, 76
BOX_TOP, BOX = 22, 30


def strip(plan: Plan) -> Html:
    """One box per layer of the teacher; a replaced span is one box over its width."""
    step = WIDTH / plan.n_layers
    gap = min(4.0, step / 5)
    replaced = {layer: edit for edit in plan.replacements for layer in edit.span.layers}
    refitted = {edit.layer for edit in plan.edits if isinstance(edit, Refit)}
    removed = set(plan.removed_layers)
    cut = {(edit.kind, layer) for edit in plan.edits if isinstance(edit, Drop) for layer in edit.indices}
    boxes = []
    for layer in range(plan.n_layers):
        state, said = "kept", "kept"
        if layer in replaced:
            state, said = "gone", f"replaced by {replaced[layer].replacement!r}"
        elif layer in removed:
            state, said = "gone", "removed"
        elif layer in refitted:
            state, said = "refitted", "kept, with new values"
        off = [{"attn": "attention", "mlp": "MLP"}[kind] for kind in ("attn", "mlp") if (kind, layer) in cut]
        said += f", without its {' and '.join(off)}" if off else ""
        width = round(step - gap, 2)
        boxes.append(
            tag("rect", tag("title", f"layer {layer}: {said}"), x=round(layer * step + gap / 2, 2), y=BOX_TOP, width=width,
                height=BOX, rx=min(4.0, width / 4), class_=f"layer {'part' if off else state}")
        )  # fmt: skip
        if state == "gone":
            x, low, high = layer * step, BOX_TOP + 6, BOX_TOP + BOX - 6
            boxes.append(
                tag("line", x1=round(x + 0.3 * step, 2), x2=round(x + 0.7 * step, 2), y1=high, y2=low, class_="strike")
            )
    for edit in plan.replacements:
        x, width = edit.start * step + gap / 2, edit.span.n * step - gap
        boxes.append(tag("rect", x=round(x, 2), y=BOX_TOP - 8, width=round(width, 2), height=6, rx=3, class_="layer module"))
        boxes.append(tag("text", f"one {edit.replacement!r}", x=round(x + width / 2, 2), y=BOX_TOP - 11, text_anchor="middle"))
    every = next(k for k in (1, 2, 5, 10, 20, 50) if plan.n_layers / k <= 33)
    numbers = [
        tag("text", layer, x=round((layer + 0.5) * step, 2), y=BOX_TOP + BOX + 17, text_anchor="middle")
        for layer in range(0, plan.n_layers, every)
    ]
    words = f"{plan.n_layers} layers; {plan}"
    drawing = tag("svg", boxes, numbers, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=words, class_="strip")
    return tag("figure", drawing, tag("figcaption", _legend(plan, refitted)), class_="layers")


def _legend(plan: Plan, refitted: set[int]) -> str:
    words = ["filled: kept", "struck: removed"] if plan.removed_layers else ["filled: kept"]
    words += ["bar above: one module in their place"] if plan.replacements else []
    words += ["with a base line: new values"] if refitted else []
    return "Layers of the teacher, numbered from 0. " + "; ".join(words) + "."
