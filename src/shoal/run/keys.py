"""What every stage of a run depends on, as a hash: all that changes its result, and nothing else.

A finished stage whose key is unchanged is read back; see :mod:`shoal.run.folder`.
"""

from __future__ import annotations

from shoal.edits.plan import Plan
from shoal.recipes.recipe import Recipe
from shoal.recipes.task_choice import asks_tasks
from shoal.run.candidate_repair import ranking_repairs, repairs_candidates
from shoal.run.choosing_tasks import tasks_of
from shoal.run.job import Inputs
from shoal.run.searching import runs_the_model, search_in_use
from shoal.run.unit_scoring import wanted_score
from shoal.select.budget import Budget
from shoal.select.proposals import search_beside
from shoal.select.request import Request
from shoal.select.table import SELECTORS
from shoal.words.records import stable_hash


def scan_key(inputs: Inputs) -> str:
    return stable_hash("scan", inputs.model_key, inputs.calibration.data_hash, inputs.recipe.observers)


def choice_key(inputs: Inputs, budget: Budget, request: Request, *, scan: str | None) -> str:
    """``scan``: key of the scan that is read, if any."""
    recipe = inputs.recipe
    used = dict(budget=budget.text, kind=budget.kind, request=repr(request), scan=scan)
    if asks_tasks(recipe):
        used.update(tasks=stable_hash([task.data_hash for task in tasks_of(recipe)]))
    if wanted_score(recipe) is not None:
        used.update(scored=f"{recipe.search.tokens} {inputs.calibration.data_hash}")
    if search_beside(request) is not None:
        used.update(search=repr(search_in_use(recipe, request)), searched=inputs.calibration.data_hash)
    if runs_the_model(recipe):
        if SELECTORS.named(recipe.select).refits:
            used.update(refitted=inputs.fitting.data_hash, how_refitted=_how_fitted(recipe))
        used.update(search=repr(recipe.search), searched=f"{inputs.calibration.data_hash} {recipe.seed}")
    if recipe.merges_layers:
        used.update(search=repr(recipe.search), searched=inputs.calibration.data_hash)
    if repairs_candidates(recipe):
        used.update(
            repair=" ".join(ranking_repairs(recipe, 2)), fitting=inputs.fitting.data_hash, how_fitted=_how_fitted(recipe)
        )
    return stable_hash("plan", inputs.model_key, used, inputs.selection.data_hash if request.n_candidates > 1 else None)


def unopened_choice_key(fingerprint: str, budget: Budget, request: Request) -> str:
    """Of a plan that is made from config and names alone."""
    return stable_hash("plan", fingerprint, budget.text, budget.kind, repr(request))


def edits_key(plan: Plan) -> str:
    """Identity of what the plan does (not of how it was chosen)."""
    return stable_hash(plan.source_hash, [edit.model_dump(mode="json") for edit in plan.edits])


def train_key(inputs: Inputs, plan: Plan, values: str) -> str:
    """``values``: digest of those that training starts from."""
    texts, config = (inputs.training.data_hash, inputs.selection.data_hash), inputs.recipe.training()
    how = None if config is None else config.model_dump(mode="json")
    return stable_hash("train", inputs.model_key, edits_key(plan), values, texts, how)


def prune_key(inputs: Inputs, plan: Plan, values: str) -> str:
    """``values``: digest of those of the student that is thinned."""
    config = inputs.recipe.prune
    assert config is not None, "nothing is thinned"
    text = inputs.calibration.data_hash if config.reads_text else ""
    return stable_hash("prune", inputs.model_key, edits_key(plan), values, text, config.model_dump(mode="json"))


def repair_key(inputs: Inputs, cut: Plan) -> str:
    """``cut``: the plan as chosen."""
    texts = (inputs.fitting.data_hash, inputs.selection.data_hash)
    return stable_hash("fit", inputs.model_key, edits_key(cut), texts, inputs.recipe.repair, _how_fitted(inputs.recipe))


def _how_fitted(recipe: Recipe) -> str:
    """All of a repair but its text, which has a hash of its own."""
    return repr(recipe.fit.model_copy(update={"tokens": None}))


def save_key(inputs: Inputs, plan: Plan, values: str) -> str:
    """``values``: digest of those beside the plan; empty where there are none."""
    return stable_hash("model", inputs.model_key, edits_key(plan), values)


def evaluation_key(inputs: Inputs, plan: Plan, values: str, *, healed: str | None = None) -> str:
    """``healed``: key of the healing behind the student, if there was one."""
    more = (*(() if healed is None else (healed,)), *(() if inputs.recipe.speed else ("without speed",)))
    return stable_hash("evaluation", save_key(inputs, plan, values), inputs.evaluation.data_hash, *more)
