"""A closed-form repair of a plan with replacements: fitted on the plain removal that the untrained replacements equal.

A replacement that inherits starts as the first layers of its span, so a repair refits those like any kept layer, and what it
finds is where the replacement's training starts. One that starts as the identity is no layer yet: the layers around it are
refitted without it. Fit first, then train: the closed form is exact and cheap, and training goes on from it with everything
that was put in.
"""

from dataclasses import replace

from shoal.edits.base import BaseEdit
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.replace.table import replacement_named
from shoal.edits.student_of import new_attached, values_of
from shoal.engine.view import DecoderView
from shoal.fit.fit_plan import FittedPlan


def as_removal(plan: Plan) -> Plan:
    """The plain removal that a plan equals before anything in it is trained.

    Raises:
        ValueError: a replacement that starts at random.
    """
    edits: list[BaseEdit] = []
    for edit in plan.edits:
        if isinstance(edit, Replace):
            gone = tuple(edit.span.layers)[_n_inherited(edit) :]
            edits += [Drop(indices=gone)] if gone else []
        else:
            edits.append(edit)
    return plan.model_copy(update={"edits": tuple(edits)})


def put_back(view: DecoderView, plan: Plan, fitted: FittedPlan) -> FittedPlan:
    """The plan with its replacements again, where ``fitted`` is the repair of :func:`as_removal` of it.

    Returns:
        Refits of inherited layers as values of their replacement; the others as they are. The student is the same, bit for bit.
    """
    inside = {slot.like: slot.values for slot in plan.structure if slot.runs == "layer" and slot.values}
    refits = [edit for edit in fitted.plan.edits if isinstance(edit, Refit)]
    found = {
        f"{inside.get(edit.layer, edit.prefix())}{name}": fitted.values[f"{edit.prefix()}{name}"]
        for edit in refits
        for name in edit.parameters
    }
    refitted = [edit for edit in plan.replacements if any(edit.owns(name) for name in found)]
    starts = values_of([new_attached(view, edit) for edit in refitted])
    assert all(name in starts or name.startswith("refit.") for name in found), "a replacement lacks a parameter of its layer"
    outside = tuple(edit for edit in refits if edit.layer not in inside)
    return replace(fitted, plan=plan.model_copy(update={"edits": (*plan.edits, *outside)}), values={**starts, **found})


def _n_inherited(edit: Replace) -> int:
    found = replacement_named(edit.replacement, edit.options)
    if found.starts_as == "random":
        raise ValueError(
            f"the replacement {edit.replacement!r} of {edit.span} starts at random, so there is no student to repair yet; "
            "use --repair none, or a replacement that starts as the identity or as a layer"
        )
    return found.n_inherited
