"""The stage plan: budget, selector and tournament, in ``plan.json``, which no later stage writes again."""

from __future__ import annotations

from dataclasses import replace

from shoal.edits.plan import Plan
from shoal.evaluate.tasks.choice import TOKENS_ON_DEVICES, TOKENS_PER_BATCH
from shoal.evaluate.tasks.task_loss import MOST_TOGETHER as MOST_ANSWERING
from shoal.fit.linear_error import bytes_per_span
from shoal.measure.metrics import METRICS
from shoal.measure.removals import MOST_TOGETHER
from shoal.measure.task_metric import TASK
from shoal.recipes.recipe import Recipe
from shoal.recipes.task_choice import asks_tasks
from shoal.run.asking import budget_of, oracle, plain_request_of, request_of, why_not
from shoal.run.by_hand import as_edited, named_key, named_plan
from shoal.run.candidate_repair import (
    LINEAR_ERROR_BYTES,
    SHARES_FOR_RANKING,
    linear_errors_of,
    ranking_repairs,
    ranking_sizes,
    repairs_candidates,
    rungs,
)
from shoal.run.choosing_tasks import tasks_of
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.keys import choice_key, scan_key
from shoal.run.memory_plan.sizes import Sizes, StageNeed, largest
from shoal.run.merging import MERGING, merges_of, merges_said
from shoal.run.pace import TRAINING, Pace
from shoal.run.race import Standings
from shoal.run.resource_amounts import amounts_of, computed_amounts
from shoal.run.searching import VALUES_FOLDER, runs_the_model, search_in_use, search_said, searched_sets, write_search
from shoal.run.stage import Made, Stage, State
from shoal.run.stages.fit import fitting, solving
from shoal.run.tournament import choose
from shoal.run.unit_scoring import measured_scores, wanted_score
from shoal.select.model_size import model_size
from shoal.select.plan_of import plan_of
from shoal.select.proposals import search_beside
from shoal.select.request import Evidence
from shoal.select.rounds import rescanner
from shoal.select.shortlist import shortlist
from shoal.select.table import SELECTORS
from shoal.words.types import UNIT_KINDS

# The file holds candidates that were measured so far, so that a stopped run does not repair them again.
STANDINGS = "tournament"

CHARACTERS_PER_TOKEN = 4


def key(state: State) -> str | None:
    recipe, view = state.inputs.recipe, state.inputs.view
    if recipe.is_by_hand:
        return named_key(state.inputs.opened.fingerprint, recipe, request_of(recipe, view).put_back)
    scan = scan_key(state.inputs) if state.scan is not None else None
    return choice_key(state.inputs, state.budget or budget_of(recipe), request_of(recipe, view), scan=scan)


def run(state: State, folder: RunFolder) -> Made:
    inputs, found, judge = state.inputs, state.scan, state.judge
    recipe, view = inputs.recipe, inputs.view
    if recipe.is_by_hand:
        plan = inputs.workers.from_first(lambda: _written(_named(inputs), folder))
        return Made(replace(state, plan=plan), ("plan.json",))
    budget, request = state.budget or budget_of(recipe), request_of(recipe, view)
    size = model_size(view)
    amounts = amounts_of(inputs, budget, folder=folder)
    scores, scored_files = measured_scores(inputs, request, folder=folder)
    value = searched_sets(inputs, request, folder=state.sets or folder)
    trial = merges_of(inputs, folder=folder) if recipe.merges_layers else None
    evidence = Evidence(
        found.tables if found else {},
        lambda structure: why_not(inputs, structure),
        value,
        recipe.seed,
        late=linear_errors_of(inputs) if request.units == "layers" else None,
        unit_tables=scores,
        amounts=amounts,
        merges=trial,
    )
    short = shortlist(
        budget,
        size,
        request,
        evidence,
        rescan=rescanner(view, inputs.batches(inputs.calibration), workers=inputs.workers) if recipe.rounds > 1 else None,
    )
    if recipe.guard > 1 and judge is None:
        judge = oracle(inputs, inputs.selection, what="tournament")
    standings = Standings(folder / STANDINGS, key(state) or "", workers=inputs.workers)
    choice = choose(
        short,
        size,
        judge=judge if recipe.guard > 1 else None,
        rungs=rungs(inputs, size, short.candidates),
        standings=standings,
    )
    plan = plan_of(
        choice.best.edits,
        size,
        own_parameters=request.put_back.own_parameters,
        source=inputs.opened.name,
        source_hash=inputs.opened.fingerprint,
        method=choice.method + search_said(inputs, request, value) + merges_said(inputs, trial),
        candidates=choice.candidates,
        spread=choice.spread,
        amounts=amounts,
    )
    plan = inputs.workers.from_first(lambda: _written(plan, folder))
    searched = [] if value is None or not value.n_evaluations else [write_search(inputs, value, short.request, folder=folder)]
    searched += [VALUES_FOLDER] if searched and state.sets is None else []
    searched += [] if trial is None else [MERGING]
    standings.clear()
    return Made(replace(state, plan=plan), ("plan.json", *dict.fromkeys([*scored_files, *searched])))


def _named(inputs: Inputs) -> Plan:
    return named_plan(
        inputs.recipe,
        model_size(inputs.view),
        source=inputs.opened.name,
        source_hash=inputs.opened.fingerprint,
        layers=inputs.view.model.get_submodule(inputs.view.layers_path),
        refuse=lambda structure: why_not(inputs, structure),
        quantised=inputs.opened.quantised,
        put_back=request_of(inputs.recipe, inputs.view).put_back,
        amounts=computed_amounts(inputs.view, context=inputs.length),
    )


def load(state: State, folder: RunFolder) -> State:
    """The plan that stands; where somebody edited it, with the sizes of its edits and without the verdict of another choice."""
    plan = Plan.load(folder / "plan.json")
    if plan.is_edited_by_hand:
        put_back = request_of(state.inputs.recipe, state.inputs.view).put_back
        amounts = computed_amounts(state.inputs.view, context=state.inputs.length)
        plan = as_edited(plan, model_size(state.inputs.view), put_back.own_parameters, amounts=amounts)
    return replace(state, plan=plan)


def takes(sizes: Sizes) -> StageNeed:
    """Candidates are judged, ranked by their linear error, searched for, and repaired: one after the other."""
    recipe, shape = sizes.recipe, sizes.shape
    n_selection, n_calibration = sizes.tokens("selection"), sizes.tokens("calibration")
    n_students = recipe.guard + 1 if recipe.guard > 1 else 1
    found = [sizes.need("plan", states=sizes.states(n_students, n_selection), work=sizes.judging(n_selection))]
    if recipe.guard > 1 and (recipe.repair != "none" or recipe.replace != "none"):
        n_spans = max(1, shape.n_layers - len(recipe.protected(shape.n_layers)) - sizes.n_cut + 1)
        n_spans = min(n_spans, max(1, LINEAR_ERROR_BYTES // bytes_per_span(shape.hidden)))
        states = sizes.states(min(2 * n_spans, shape.n_layers + 1), n_calibration)
        sums = n_spans * bytes_per_span(shape.hidden)
        found.append(sizes.need("plan", states=states, work=sizes.layer_work(sizes.n_batch), sums=sums))
    found += _searching(sizes)
    if repairs_candidates(recipe):
        found.append(fitting(sizes, "plan", share=min(SHARES_FOR_RANKING), n_states=6))
    return largest(*found)


def _searching(sizes: Sizes) -> list[StageNeed]:
    """Sets that are run to choose by: on a text with what is kept of it, or on items of tasks, a batch after the other."""
    recipe, shape = sizes.recipe, sizes.shape
    found: list[StageNeed] = []
    by_task = asks_tasks(recipe)
    if by_task:
        n_read = TOKENS_ON_DEVICES if sizes.machine.host is not None else TOKENS_PER_BATCH["cpu"]
        found.append(sizes.need("plan", states=sizes.states(MOST_ANSWERING + 1, n_read), work=sizes.judging(n_read)))
    scored, request = wanted_score(recipe), plain_request_of(recipe, shape.n_layers)
    is_scored_by_running = scored is not None and scored.reads != "weights" and not by_task
    searches = runs_the_model(recipe) and not by_task or (search_beside(request) is not None and not recipe.is_by_hand)
    if not searches and not is_scored_by_running:
        return found
    n_tokens = recipe.search.tokens if is_scored_by_running else search_in_use(recipe, request)[2]
    n_searched = min(sizes.tokens("calibration"), max(sizes.length, n_tokens))
    if scored is not None and scored.reads == "gradients":
        n_searched = sizes.tokens("calibration")
    # The cache holds the chain of the teacher and of the sets that grow from it, at every boundary, and boundary L of all
    # sets of a pass.
    cache = min(sizes.machine.spill, sizes.all_states(2 * shape.n_layers, n_searched))
    states = sizes.states(MOST_TOGETHER + 1, n_searched)
    compared = [search_in_use(recipe, request)[1]] if searches else []
    compared += [scored.metric] if scored is not None and is_scored_by_running else []
    needs_head = any(not metric or METRICS.named(metric).needs != "hidden" for metric in compared)
    work = sizes.judging(n_searched) if needs_head else sizes.layer_work(n_searched)
    return [*found, sizes.need("plan", states=states, cache=cache, work=work)]


def lasts(pace: Pace) -> dict[str, float]:
    """Sets that are run, or units that are measured, to choose by; and the tournament of what they propose."""
    found: dict[str, float] = {}
    if not pace.recipe.is_by_hand:
        found = _measuring(pace)
        if beside := _searching_beside(pace):
            found["search"] = found.get("search", 0.0) + beside
    if pace.recipe.guard > 1:
        found["tournament"] = _racing(pace)
    return found


def _measuring(pace: Pace) -> dict[str, float]:
    recipe, n_scan = pace.recipe, pace.tokens("calibration")
    n_searched = min(n_scan, recipe.search.tokens * pace.share)
    scored, n_read = wanted_score(recipe), _tokens_of_items(recipe) if asks_tasks(recipe) else n_searched
    if (n_sets := _sets_of_search(recipe.select, pace)) is not None:
        return {"search": _running_sets(pace, min(n_sets, recipe.search.evaluations or n_sets), recipe.search.metric, n_read)}
    if scored is not None and scored.of_values is not None:
        n_sets = scored.n_sets(pace.shape.n_layers * len(UNIT_KINDS[recipe.units]))
        return {"search": _running_sets(pace, n_sets, scored.metric, n_read)}
    if scored is None or scored.reads == "weights":
        return {}
    return {"scores": pace.layers(TRAINING * n_scan if scored.reads == "gradients" else n_searched)}


def _sets_of_search(selector: str, pace: Pace) -> int | None:
    """Sets of a search that lets a quarter of the units go; None where the selector runs none."""
    searches, n_units = SELECTORS.named(selector).n_evaluations, pace.shape.n_layers * len(UNIT_KINDS[pace.recipe.units])
    return None if searches is None else searches(n_units, max(1, n_units // 4))


def _searching_beside(pace: Pace) -> float:
    """The search that competes with the selector; 0 where none does."""
    request = request_of(pace.recipe, pace.inputs.view)
    if search_beside(request) is None:
        return 0.0
    selector, metric, most = search_in_use(pace.recipe, request)
    n_tokens = min(pace.tokens("calibration"), most * pace.share)
    return _running_sets(pace, _sets_of_search(selector, pace) or 0, metric, n_tokens)


def _running_sets(pace: Pace, n_sets: int, metric: str, n_tokens: float) -> float:
    """A set runs the layers behind its first unit: half of them in the mean."""
    needs_head = metric == TASK or METRICS.named(metric).needs != "hidden"
    return n_sets * n_tokens * (pace.rates.layers / 2 + pace.rates.compared * needs_head)


def _tokens_of_items(recipe: Recipe) -> float:
    """About how many tokens the answers to a recipe's tasks read: every option with its context."""
    items = [item for task in tasks_of(recipe) for item in task.items]
    return sum(len(item.ctx) + len(choice) for item in items for choice in item.choices) / CHARACTERS_PER_TOKEN


def _racing(pace: Pace) -> float:
    """Candidates as plain cuts; or ranked by linear error, and in every round the better half repaired on more text."""
    recipe, shape, length = pace.recipe, pace.shape, pace.inputs.length
    n_selection, n_left = pace.tokens("selection"), recipe.guard
    if not repairs_candidates(recipe):
        return n_left * pace.judging(n_selection)
    lookups = pace.rates.layers + shape.n_layers * 4 * shape.hidden**2 / pace.rates.products
    seconds = pace.tokens("calibration") * lookups
    texts = [n * length * pace.share for n in ranking_sizes(pace.n_fit // length, length)]
    rounds = list(zip(texts, ranking_repairs(recipe, len(texts)), strict=True))
    for text, repair in rounds if n_left > 2 else rounds[-1:]:
        seconds += n_left * (solving(pace, repair, text, searches=False) + 2 * pace.judging(n_selection))
        n_left = max(2, -(-n_left // 2))
    return seconds


def _written(plan: Plan, folder: RunFolder) -> Plan:
    plan.save(folder / "plan.json")
    return plan


CHOOSE = Stage("plan", "which layers go: budget, selector, and a tournament of candidates", key, run, load, takes, lasts)
