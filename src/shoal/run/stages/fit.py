"""The stage between plan and training: a closed-form repair, in ``fit.json``, ``fit.safetensors`` and the plan's refits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.keys import repair_key
from shoal.run.stages.stages import VALUES, oracle
from shoal.words.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.plan import Plan
    from shoal.fit.fit_result import FitResult


@dataclass(frozen=True, eq=False)
class Repaired:
    """A plan with its refits and their values; ``result`` is None where no repair was asked for."""

    plan: Plan
    values: dict[str, Tensor]
    result: FitResult | None = None


def fit_stage(inputs: Inputs, folder: RunFolder, plan: Plan, *, progress: Progress = silent) -> Repaired:
    """Repair a plan as the recipe asks. ``plan.json`` is written again with the refits, so that it can be applied.

    Args:
        plan: of the plan stage; refits that an earlier run of this folder left in it are dropped first.
    """
    from shoal.edits.plan import Plan
    from shoal.engine.tensors import each_tensor, save_tensors
    from shoal.fit.fit_plan import fit_plan, without_refits
    from shoal.fit.fit_result import FitResult
    from shoal.fit.put_back import as_removal, put_back
    from shoal.fit.table import repair_named

    repair, cut = inputs.recipe.repair, without_refits(plan)
    if repair == "none":
        if "fit" in folder.record.stages and not folder.is_done("fit", "none"):  # refused without --overwrite, else forgotten
            folder.workers.on_first(lambda: cut.save(folder / "plan.json"))
        return Repaired(cut, {})
    key = repair_key(inputs, cut)
    if folder.is_done("fit", key):
        values = dict(each_tensor(folder / VALUES)) if (folder / VALUES).exists() else {}
        return Repaired(Plan.load(folder / "plan.json"), values, FitResult.load(folder / "fit.json"))
    started = time.monotonic()
    judge = oracle(inputs, inputs.selection, what="check the repair", progress=progress)
    of_modules = repair_named(repair).sets_replacements  # All others set what is there without the replacements.
    fitted = fit_plan(
        inputs.view,
        cut if of_modules else as_removal(cut),
        inputs.fitting,
        repair=repair,
        batch_size=inputs.batch_size,
        config=inputs.recipe.fit,
        quality=lambda students: [quality.kl for quality in judge.measure(students)],
        progress=lambda done, total: progress(repair, done, total),
        workers=inputs.workers,
    )
    if cut.replacements and not of_modules:
        fitted = put_back(inputs.view, cut, fitted)

    def write() -> None:
        fitted.result.save(folder / "fit.json")
        if fitted.values:
            save_tensors(folder / VALUES, fitted.values)
        fitted.plan.save(folder / "plan.json")

    folder.workers.on_first(write)
    files = ["fit.json", VALUES] if fitted.values else ["fit.json"]
    folder.finish("fit", key, seconds=time.monotonic() - started, files=files)
    return Repaired(fitted.plan, fitted.values, fitted.result)
