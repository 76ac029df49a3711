"""Apply a plan to its source: file to file where whole layers go, in memory where there are values to put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.checkpoint.new_folder import new_folder
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.verify import verify
from shoal.checkpoint.write import is_bundled, write
from shoal.edits.plan import Plan, structure_of
from shoal.edits.student_of import student_of
from shoal.engine.beside import Beside
from shoal.engine.model_config import describe, describe_source
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.quantised import why_not_openable
from shoal.engine.source import fingerprint, quantisation, resolve_source
from shoal.engine.spill import free_memory
from shoal.engine.view import DecoderView
from shoal.recipes.recipe import Recipe
from shoal.run.folder import CHOSEN
from shoal.run.refusals import refuse_place
from shoal.run.run_files import values_for
from shoal.run.stages.fit import VALUES
from shoal.run.stages.polish import TRAINED
from shoal.run.unopened import chosen_unopened
from shoal.words.reading import read_json, refuse_other_than_plan
from shoal.words.structure import Size
from shoal.words.types import Batch


@dataclass(frozen=True)
class Applied:
    """The plan, its checkpoint, what was checked, and what the source's folder holds beside the decoder."""

    plan: Plan
    path: Path
    verification: dict[str, Any]
    beside: Beside


def apply_plan(plan_file: Path, out: Path, opening: Opening = Opening(), *, model: str | None = None) -> Applied:
    """Write the checkpoint that a plan describes.

    Args:
        plan_file: ``plan.json`` (the cut as it was chosen), perhaps edited by hand, or ``fitted.json`` (with its repair); their
            values are beside them, in ``train.safetensors`` where they were trained, else in ``fit.safetensors``.
        out: new or empty folder.
        model: the source, when it is not where the plan says.
    Raises:
        ValueError: no such plan, a plan that cannot be, another source than the plan's, missing values, a failed check.
    """
    plan_file = Path(plan_file)
    refuse_other_than_plan(plan_file, "shoal plan writes one")
    return _applied_to(Plan.load(plan_file), plan_file.parent, out, opening, model=model)


def apply_named(recipe: Recipe, out: Path, opening: Opening = Opening()) -> Applied:
    """Write the checkpoint without the layers that a recipe names.

    Raises:
        ValueError: as :func:`shoal.run.by_hand.named_plan`, and as :func:`apply_plan` for the folder.
    """
    assert recipe.model is not None and recipe.is_by_hand
    refuse_place(out, Path(recipe.model))
    plan = chosen_unopened(recipe, describe_source(recipe.model, trust_remote_code=opening.trust))
    return _applied_to(plan, None, out, opening, model=None)


def _applied_to(plan: Plan, folder: Path | None, out: Path, opening: Opening, *, model: str | None) -> Applied:
    """``folder``: where values lie; None: there are none."""
    if plan.structure == structure_of((), plan.n_layers) and not any(edit.writes() for edit in plan.edits):
        raise ValueError(f"all {plan.n_layers} layers stay as they are, so nothing is removed; name what goes (--layers)")
    source = resolve_source(model or plan.source, trust_remote_code=opening.trust)
    refuse_place(out, source)
    found = fingerprint(source)
    if found != plan.source_hash:
        raise ValueError(
            f"{source} is not the model this plan was made for (weights or config differ: {found}, the plan has "
            f"{plan.source_hash}); give the right one with --model, or make a plan for this one"
        )
    beside = describe(source, trust_remote_code=opening.trust).beside
    with new_folder(out) as made:  # The folder takes its name when it has been verified.
        if plan.needs_no_weights:
            rewrite(source, plan, made, trust_remote_code=opening.trust)
            verification = _check_rewritten(made, opening)
        else:
            verification = _apply_in_memory(plan, folder, source, made, opening)
        done = _applied(plan, out, verification, beside)
        done.plan.save(made / CHOSEN)  # Healing and export of this folder alone ask what it was cut from.
    return done


def _apply_in_memory(plan: Plan, folder: Path | None, source: Path, out: Path, opening: Opening) -> dict[str, Any]:
    values = {} if folder is None else values_for(plan, folder)
    refuse_untrained(plan, values)
    opened = open_model(source, opening)
    view = DecoderView(opened.model)
    student = student_of(view, plan, values)
    write(view, opened.path, plan, out, values=values)
    checked = verify(
        out,
        ids_BT=_some_ids(view.config.vocab_size),
        reference=lambda ids: view.logits(Batch(ids), student=student),
        opening=opening.trusting(is_bundled(view, plan)),
    )
    return checked.model_dump(mode="json")


def refuse_untrained(plan: Plan, values: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a replacement without values: the checkpoint would hold an untrained module."""
    for edit in plan.replacements:
        if not any(edit.owns(name) for name in values):
            raise ValueError(
                f"the {edit.replacement!r} in place of {edit.span} has no values beside the plan ({TRAINED} or {VALUES}); copy "
                "them there from the run folder, or train it: shoal compress with the same options"
            )


def _applied(plan: Plan, out: Path, verification: dict[str, Any], beside: Beside) -> Applied:
    """With the size that was found: the one in a plan edited by hand may be that of the plan before."""
    found = verification.get("size", {"layers": plan.n_layers_after, "parameters": plan.after.parameters})
    return Applied(plan.model_copy(update={"after": Size(**found)}), out, verification | {"path": str(out)}, beside)


def _check_rewritten(out: Path, opening: Opening) -> dict[str, Any]:
    """Reload and run a checkpoint that was cut file to file, where it can be: one that nothing here opens is left as it is."""
    config = read_json(out / "config.json")
    n_bytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    free = free_memory()
    method = quantisation(config)
    why = None if method is None else why_not_openable(method)
    if n_bytes > 0.7 * free:
        why = f"{n_bytes:,} bytes do not fit in {free:,} of memory"
    if why is not None:
        return {"names_and_shapes": "as the config asks", "reload": f"not tried: {why}"}
    vocab = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 2)
    checked = verify(out, ids_BT=_some_ids(vocab), opening=opening)
    return checked.model_dump(mode="json")


def _some_ids(vocab: int, n_tokens: int = 16) -> Tensor:
    return torch.arange(2 * n_tokens).remainder(vocab).view(2, n_tokens)
