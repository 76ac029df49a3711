"""Write the checkpoint of a plan, whatever it puts in place of spans: a stock checkpoint where that is exact, else with code.

A replacement in the ``stock`` layout becomes a layer of the family with the values that compute it. One in the ``code`` layout
is attached inside the layer before it, by a subclass that comes with the checkpoint; the rest of the folder is a stock
checkpoint without the span. Both go shard by shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from shoal.checkpoint.bundled_code import bundle, refuse_no_bundle
from shoal.checkpoint.new_folder import new_folder
from shoal.checkpoint.rewrite import rewrite
from shoal.edits.plan import Plan
from shoal.edits.replace.as_stock_layer import NotStock, stock_values
from shoal.edits.replace.contract import Replacement
from shoal.edits.replace.modules import StreamModule
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import load_values, new_attached, with_derived
from shoal.engine.view import DecoderView
from shoal.words.structure import Slot, Structure


@dataclass(frozen=True, eq=False)
class Split:
    """A plan split into what a stock checkpoint holds, and modules by the layer of that checkpoint they follow."""

    structure: Structure
    values: dict[str, Tensor]
    hosted: dict[int, list[StreamModule]]


def write(view: DecoderView, source: Path, plan: Plan, out: Path, *, values: Mapping[str, Tensor] | None = None) -> Path:
    """Write the student of a plan as a checkpoint folder, whole or not at all.

    Args:
        view: of the source as it was opened; its layers may be on disk.
        source: the folder it came from.
        values: of the plan's refits and replacements, under the names ``student_of`` reads.
    Returns: ``out``.
    Raises:
        ValueError: as :func:`shoal.checkpoint.rewrite.rewrite`; a replacement that no layer stands before; a family whose code
            cannot be extended.
    """
    parts = split(view, plan, with_derived(view, plan, values or {}))
    if not parts.hosted:
        return rewrite(source, plan, out, structure=parts.structure, values=parts.values, model=view.model)
    refuse_no_bundle(view.model)
    with new_folder(out) as folder:
        rewrite(source, plan, folder, structure=parts.structure, values=parts.values, model=view.model)
        bundle(folder, view.model, view.layers_path, parts.hosted)
    return Path(out)


def split(view: DecoderView, plan: Plan, values: Mapping[str, Tensor]) -> Split:
    """What of a plan is stock, and what needs code.

    Raises:
        ValueError: a replacement in the code layout has no layer before it; a stock layout that is none.
    """
    left = dict(values)
    structure: list[Slot] = []
    hosted: dict[int, list[StreamModule]] = {}
    edits = {edit.prefix(): edit for edit in plan.replacements}
    for slot in plan.structure:
        if slot.runs == "layer":
            structure.append(slot)
            continue
        edit = edits[slot.values]
        module = _module(view, edit, left)
        if layout_of(view, edit.description) == "stock":
            inner = f"{slot.values}layer."
            left.update({f"{inner}{name}": value for name, value in _stock_layer(view, edit, module).items()})
            structure.append(Slot(slot.like, values=inner))
        elif structure:
            hosted.setdefault(len(structure) - 1, []).append(module)
        else:
            raise ValueError(
                f"the replacement {module.kind!r} starts at layer {slot.like} and no layer before it is kept: its code needs "
                "one to be attached to; keep the first layer, or use the replacement 'layer'"
            )
    return Split(tuple(structure), left, hosted)


def layout_of(view: DecoderView, replacement: Replacement) -> str:
    """``stock`` or ``code``: what the plan says, else what is exact in this family."""
    stated = replacement.options().get("layout")
    return str(stated or replacement.resolved(view).options().get("layout", "stock"))


def is_bundled(view: DecoderView, plan: Plan) -> bool:
    """Whether the checkpoint of a plan comes with code."""
    return any(layout_of(view, edit.description) == "code" for edit in plan.replacements)


def _module(view: DecoderView, edit: Replace, left: dict[str, Tensor]) -> StreamModule:
    """The module of an edit with its values, which are taken out of ``left``."""
    module = new_attached(view, edit).module
    assert isinstance(module, StreamModule)
    prefix = edit.prefix()
    own = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
    if own:
        load_values(module, own, where=f"values of {edit.replacement!r} over {edit.span}")
    return module


def _stock_layer(view: DecoderView, edit: Replace, module: StreamModule) -> dict[str, Tensor]:
    """The state of the span's first layer with the values that make it compute the module."""
    try:
        changed = stock_values(view, edit.start, module)
    except NotStock as reason:
        raise ValueError(
            f"{edit.replacement!r} over {edit.span} cannot be a stock layer of this {view.family} model: {reason}; use the "
            "option layout=code"
        ) from None
    with view.residency.layer(edit.start) as layer:
        return {name: changed.get(name, value).detach().clone() for name, value in layer.state_dict().items()}
