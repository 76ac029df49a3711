"""The stage plan: budget, selector and tournament, in ``plan.json``, which no later stage writes again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.run.asking import budget_of, needs_model, oracle, plain_request_of, reason_of, request_of, why_not
from shoal.run.candidate_repair import linear_errors_of, rungs
from shoal.run.folder import RunFolder
from shoal.run.keys import choice_key, scan_key, unopened_choice_key
from shoal.run.searching import runs_the_model, search_said, set_function_of, write_search
from shoal.run.stage import Made, Stage, State
from shoal.words.progress import Progress
from shoal.words.structure import Structure, stored

STANDINGS = "tournament"  # candidates that were measured so far, so that a stopped run does not repair them again

if TYPE_CHECKING:
    from shoal.edits.plan import Plan
    from shoal.recipes.recipe import Recipe


def key(state: State) -> str | None:
    recipe, view = state.inputs.recipe, state.inputs.view
    scan = scan_key(state.inputs) if state.scan is not None else None
    return choice_key(state.inputs, state.budget or budget_of(recipe), request_of(recipe, view), scan=scan)


def run(state: State, folder: RunFolder, progress: Progress) -> Made:
    from shoal.run.race import Standings
    from shoal.run.tournament import choose
    from shoal.select.model_size import model_size
    from shoal.select.plan_of import plan_of
    from shoal.select.request import Evidence
    from shoal.select.rounds import rescanner
    from shoal.select.shortlist import shortlist

    inputs, found, judge = state.inputs, state.scan, state.judge
    recipe, view = inputs.recipe, inputs.view
    budget, request = state.budget or budget_of(recipe), request_of(recipe, view)
    size = model_size(view)
    value = set_function_of(inputs, request, folder=folder, progress=progress) if runs_the_model(recipe) else None
    evidence = Evidence(
        found.tables if found else {},
        lambda structure: why_not(inputs, structure),
        value,
        recipe.seed,
        late=linear_errors_of(inputs, progress=progress),
    )
    short = shortlist(
        budget,
        size,
        request,
        evidence,
        rescan=rescanner(view, inputs.batches(inputs.calibration), workers=inputs.workers) if recipe.rounds > 1 else None,
    )
    if recipe.guard > 1 and judge is None:
        judge = oracle(inputs, inputs.selection, what="tournament", progress=progress)
    standings = Standings(folder / STANDINGS, key(state) or "", workers=inputs.workers)
    choice = choose(
        short,
        size,
        judge=judge if recipe.guard > 1 else None,
        rungs=rungs(inputs, size, progress=progress),
        standings=standings,
    )
    plan = plan_of(
        choice.best.edits,
        size,
        own_parameters=request.put_back.own_parameters,
        source=inputs.opened.name,
        source_hash=inputs.opened.fingerprint,
        method=choice.method + search_said(inputs, value),
        candidates=choice.candidates,
        spread=choice.spread,
    )
    plan = inputs.workers.from_first(lambda: _written(plan, folder))
    searched = [] if value is None else write_search(inputs, value, short.request.n, folder=folder)
    standings.clear()
    return Made(replace(state, plan=plan), ("plan.json", *searched))


def load(state: State, folder: RunFolder) -> State:
    """The plan that stands; where somebody edited it, with the sizes of its edits and without the verdict of another choice."""
    from shoal.edits.plan import Plan
    from shoal.select.model_size import model_size

    plan = Plan.load(folder / "plan.json")
    if plan.is_edited_by_hand:
        put_back = request_of(state.inputs.recipe, state.inputs.view).put_back
        after = model_size(state.inputs.view).after(plan.structure, put_back.own_parameters)
        plan = plan.model_copy(update={"after": after, "method": "edited by hand", "candidates": (), "spread": ()})
    return replace(state, plan=plan)


def plan_unopened(recipe: Recipe, folder: RunFolder, *, trust_remote_code: bool = False) -> Plan:
    """``plan.json`` by a rule that measures nothing: from config and names alone, so quantised checkpoints of any size will do.

    Raises:
        ValueError: the recipe needs scores or puts something back; and as for :func:`plan_stage`.
    """
    from shoal.checkpoint.blueprint import check_can_be_cut, check_layers
    from shoal.edits.plan import Plan
    from shoal.engine.families import find_layers
    from shoal.engine.model_config import describe
    from shoal.engine.source import fingerprint, resolve_source
    from shoal.run.tournament import choose
    from shoal.select.model_size import size_of
    from shoal.select.plan_of import plan_of
    from shoal.select.request import Evidence
    from shoal.select.shortlist import shortlist

    if recipe.model is None or needs_model(recipe):
        raise ValueError("a plan without opening the model needs a model, --select deepest, --guard 1 and --replace none")
    path = resolve_source(recipe.model, trust_remote_code=trust_remote_code)
    described = describe(path, trust_remote_code=trust_remote_code)
    config, skeleton = described.config, described.model
    check_can_be_cut(config, model_class=type(skeleton))
    size = size_of(skeleton, find_layers(skeleton)[0])
    request = plain_request_of(recipe, size.n_layers)
    budget = budget_of(recipe)
    key = unopened_choice_key(fingerprint(path), budget, request)
    if folder.is_done("plan", key):
        return Plan.load(folder / "plan.json")

    def refuse(structure: Structure) -> str | None:
        order = [slot.like for slot in stored(structure)]
        return reason_of(lambda: check_layers(config, order, model_class=type(skeleton)))

    choice = choose(shortlist(budget, size, request, Evidence(refuse=refuse)), size)
    plan = plan_of(
        choice.best.edits,
        size,
        source=recipe.model,
        source_hash=fingerprint(path),
        method=choice.method,
        candidates=choice.candidates,
    )
    plan = folder.workers.from_first(lambda: _written(plan, folder))
    folder.finish("plan", key, seconds=0.0, files=["plan.json"])
    return plan


def _written(plan: Plan, folder: RunFolder) -> Plan:
    plan.save(folder / "plan.json")
    return plan


CHOOSE = Stage("plan", "which layers go: budget, selector, and a tournament of candidates", key, run, load)
