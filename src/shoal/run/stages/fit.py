"""The stage fit: a closed-form repair, in ``fit.json``, ``fit.safetensors`` and ``fitted.json``, the plan with its refits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from shoal.edits.plan import Plan
from shoal.fit.fit_plan import FittedPlan, fit_plan
from shoal.fit.fit_result import FitResult
from shoal.fit.kept_layers import KeptLayers
from shoal.fit.put_back import as_removal, put_back
from shoal.fit.table import REPAIRS
from shoal.fit.teacher_prefix import Reuse
from shoal.run.asking import oracle
from shoal.run.folder import RunFolder
from shoal.run.keys import repair_key
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.pace import Pace, solve_flops
from shoal.run.stage import Made, Stage, State, Values, read_values, write_values
from shoal.words.progress import tell

VALUES, FITTED = "fit.safetensors", "fitted.json"
# The folder holds the layers that a sweep has fitted so far, so that a stopped run does not solve them again.
LAYERS = "fit-layers"

RIDGES_SOLVED, FOLDS = 3.5, 4
SPECTRUM = 2  # The condition and the effective rank of a fit take so many solves.
PASSES = 5  # A layer that is refitted runs before, after each of three solves, and once in the teacher.


def key(state: State) -> str:
    return repair_key(state.inputs, state.planned)


def load(state: State, folder: RunFolder) -> State:
    result = FitResult.load(folder / "fit.json")
    values = read_values(folder / VALUES, result.values_digest)
    return replace(state, plan=Plan.load(folder / FITTED), values=values, repaired=result)


def run(state: State, folder: RunFolder) -> Made:
    kept = KeptLayers(folder / LAYERS / key(state), workers=folder.workers)
    fitted = repaired(state, kept)

    def write() -> str:
        digest = write_values(folder / VALUES, fitted.values).digest if fitted.values else ""
        fitted.plan.save(folder / FITTED)
        fitted.result.model_copy(update={"values_digest": digest}).save(folder / "fit.json")
        return digest

    digest = folder.workers.from_first(write)
    folder.workers.on_first(lambda: folder.remove(LAYERS))
    result = fitted.result.model_copy(update={"values_digest": digest})
    state = replace(state, plan=fitted.plan, values=Values(fitted.values, digest), repaired=result)
    return Made(state, ("fit.json", FITTED, *((VALUES,) if fitted.values else ())))


def repaired(state: State, kept: KeptLayers) -> FittedPlan:
    """The plan with its repair; one that makes the student worse on ``selection`` is undone."""
    inputs, plan, repair = state.inputs, state.planned, state.inputs.recipe.repair
    judge = oracle(inputs, inputs.selection, what="check the repair")
    of_modules = REPAIRS.named(repair).sets_replacements  # All others set what is there without the replacements.
    fitted = fit_plan(
        inputs.view,
        plan if of_modules else as_removal(plan),
        inputs.fitting,
        repair=repair,
        batch_size=inputs.batch_size,
        config=inputs.recipe.fit,
        reuse=Reuse(kept),
        quality=lambda students: [quality.kl for quality in judge.measure(students)],
        progress=partial(tell, REPAIRS.named(repair).comes_to or repair),
        workers=inputs.workers,
    )
    return fitted if of_modules or not plan.replacements else put_back(inputs.view, plan, fitted)


def takes(sizes: Sizes) -> StageNeed:
    return fitting(sizes, "fit", share=1)


def fitting(sizes: Sizes, stage: str, *, share: int, n_states: int = 5) -> StageNeed:
    """Two states of the teacher and three of the student, and what the entry of the repair takes.

    Args:
        n_states: one more where candidates share those in front of their cuts.
        share: one part in that many of the text of the fit is read.
    """
    recipe, shape = sizes.recipe, sizes.shape
    own = REPAIRS.named(recipe.repair).size(shape, sizes.n_kept)
    values = own.parameters * shape.itemsize
    return sizes.need(
        stage,
        states=sizes.all_states(n_states, recipe.fit.n_tokens(max(shape.ffn, 4 * shape.hidden)) // share),
        work=sizes.layer_work(sizes.n_batch) + own.per_token * sizes.n_batch,
        sums=own.sums,
        values=values,
        disk=values if share == 1 else 0,
    )


def lasts(pace: Pace) -> dict[str, float]:
    """The repair, and its student compared with the plain cut."""
    repair = solving(pace, pace.recipe.repair, pace.n_fit * pace.share, searches=pace.recipe.fit.ridge is None)
    return {"repair": repair + 2 * pace.judging(pace.tokens("selection"))}


def solving(pace: Pace, repair: str, n_tokens: float, *, searches: bool) -> float:
    """Seconds of one closed-form repair, by its name, of a quarter of the layers, cut from the middle.

    Args:
        searches: the ridge is looked for by cross-validation.
    """
    shape, rates = pace.shape, pace.rates
    n_before = 3 * shape.n_layers // 8
    size = REPAIRS.named(repair).size(shape, n_before)
    n_refitted = size.layers if size.solved else 0
    forwards = (n_before + shape.n_layers // 4 + PASSES * n_refitted) / shape.n_layers
    sums = n_refitted * sum(2 * n * (n + shape.hidden) for n in size.solved)
    solved = (RIDGES_SOLVED if searches else 1) * FOLDS + SPECTRUM + 1
    solves = n_refitted * solved * sum(solve_flops(n, 2 * shape.hidden) for n in size.solved)
    return n_tokens * (forwards * rates.layers + sums / rates.products) + solves / rates.solves


FIT = Stage(
    "fit",
    "a repair in closed form: forward passes and linear solves",
    key,
    run,
    load,
    takes,
    lasts,
    is_asked=lambda recipe: recipe.repair != "none",
)
