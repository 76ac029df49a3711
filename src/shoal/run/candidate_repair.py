"""What the tournament of the plan stage needs besides the oracle: spans ranked by linear error, and candidates repaired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from shoal.edits.drop import drops_of
from shoal.edits.plan import Candidate
from shoal.edits.student_of import student_of
from shoal.engine.student import Student
from shoal.fit.fit_config import LINEAR_ERROR, FitConfig
from shoal.fit.fit_plan import fit_plan
from shoal.fit.fit_result import CannotRefit
from shoal.fit.kept_layers import KeptLayers
from shoal.fit.linear_error import bytes_per_span, linear_errors
from shoal.fit.table import REPAIRS
from shoal.fit.teacher_prefix import Reuse, TeacherPrefix
from shoal.measure.set_function import UnitSet
from shoal.recipes.recipe import Recipe
from shoal.run.job import Inputs
from shoal.run.race import RepairOfCandidate, Rung
from shoal.run.refitted_sets import RefitOf
from shoal.select.model_size import ModelSize, model_size
from shoal.select.plan_of import plan_of
from shoal.select.request import LateTable
from shoal.text.samples import Samples
from shoal.words.progress import each_batch, tell
from shoal.words.types import Span, SpanTable

LINEAR_ERROR_BYTES = 4 << 30
"""Most memory for the sums of the linear errors. A constant, so that the choice does not depend on the machine."""

SHARES_FOR_RANKING = (16, 4)
"""Candidates are repaired on one part in that many of the text of the fit, those still in the race on the larger one:
to rank them takes less text than to repair the winner."""

FEWEST_FOR_RANKING = 5120
"""Tokens of a part, where the text holds them."""

APART = 2
"""A part has at least that many times the samples of the one before: a second look at nearly the same text would tell nothing
new, so the smaller of two that are alike is left out."""

RANKING_RIDGE = 1e-2
"""Of those repairs, unless the recipe has one: cross-validation would take longer than the rest, and ranks them alike."""


def linear_errors_of(inputs: Inputs) -> LateTable | None:
    """The table of linear errors, measured when it is asked for.

    None unless the table would be used: by ``--by linear_error/rest``, or by a tournament that compares several candidates of a
    plan with a repair or a replacement.
    """
    recipe = inputs.recipe
    is_wanted = recipe.guard > 1 and (recipe.repair != "none" or recipe.replace != "none")
    if recipe.by != LINEAR_ERROR and not is_wanted:
        return None

    def measure(spans: Sequence[Span]) -> SpanTable:
        batches = inputs.batches(inputs.calibration)
        most = max(1, LINEAR_ERROR_BYTES // bytes_per_span(inputs.view.hidden_size))
        return linear_errors(
            inputs.view,
            batches,
            spans=spans[:most],
            after_batch=each_batch("rank by linear error", len(batches)),
            workers=inputs.workers,
        )

    return LateTable(LINEAR_ERROR, measure)


def repairs_candidates(recipe: Recipe) -> bool:
    """True where the tournament compares repaired students.

    A replacement is compared by its start: the plain removal it equals, repaired where the recipe repairs that.
    """
    return recipe.guard > 1 and REPAIRS.named(recipe.repair).compares_repaired


def ranking_repairs(recipe: Recipe, n_rounds: int) -> list[str]:
    """The repair of every round: the recipe's own decides the last, and before it a cheaper one tells who is clearly behind."""
    return [REPAIRS.named(recipe.repair).ranks_by or recipe.repair] * (n_rounds - 1) + [recipe.repair] * (n_rounds > 0)


def ranking_texts(inputs: Inputs) -> list[Samples]:
    """The parts of the text of the fit that candidates are repaired on, the smallest first."""
    return [inputs.fitting.take(n) for n in ranking_sizes(inputs.fitting.n_samples, inputs.length)]


def ranking_sizes(n_samples: int, length: int) -> list[int]:
    """Samples of each part of a text for the fit, so many tokens long, the smallest first."""
    sizes: list[int] = []
    for share in sorted(SHARES_FOR_RANKING):
        n = min(n_samples, max(n_samples // share, -(-FEWEST_FOR_RANKING // length)))
        if not sizes or APART * n <= sizes[0]:
            sizes.insert(0, n)
    return sizes


def rungs(inputs: Inputs, size: ModelSize, candidates: Sequence[Candidate]) -> tuple[Rung, ...]:
    """The rounds of the race of repaired candidates; none where plain cuts are compared."""
    if not repairs_candidates(inputs.recipe):
        return ()
    boundary = shared_boundary(candidates)
    found, texts = [], ranking_texts(inputs)
    for samples, repair in zip(texts, ranking_repairs(inputs.recipe, len(texts)), strict=True):
        prefix = TeacherPrefix(inputs.view, inputs.batches(samples), boundary, workers=inputs.workers)
        found.append(Rung(samples.n_tokens, repairer(inputs, size, samples, prefix, repair=repair)))
    return tuple(found)


def shared_boundary(candidates: Sequence[Candidate]) -> int:
    """The boundary up to which no candidate changes anything: that before the layer in front of the earliest cut."""
    units = [unit for one in candidates for unit in one.units]
    return max(0, min((unit.index - (unit.kind == "layer") for unit in units), default=0))


def refit_without(inputs: Inputs) -> tuple[RefitOf, str]:
    """New values of what stays where units are gone, by the repair ``refit`` on little text; and the identity of that text."""
    samples, size = ranking_texts(inputs)[0], model_size(inputs.view)
    config = _config_for_ranking(inputs.recipe)

    def refit(off: UnitSet) -> Mapping[int, Mapping[str, Tensor]]:
        cut = plan_of(drops_of(off), size, source=inputs.opened.name, source_hash=inputs.opened.fingerprint)
        try:
            fitted = fit_plan(
                inputs.view,
                cut,
                samples,
                repair="refit",
                batch_size=inputs.batch_size,
                config=config,
                progress=partial(tell, "refit between two rounds"),
                workers=inputs.workers,
            )
        except CannotRefit:  # This cut leaves nothing that can be refitted, so the search goes on in the plain one.
            return {}
        return student_of(inputs.view, fitted.plan, fitted.values).overrides

    return refit, f"{samples.data_hash} {samples.n_samples} {config!r}"


def _config_for_ranking(recipe: Recipe) -> FitConfig:
    return recipe.fit if recipe.fit.ridge is not None else recipe.fit.model_copy(update={"ridge": RANKING_RIDGE})


def repairer(inputs: Inputs, size: ModelSize, samples: Samples, prefix: TeacherPrefix, *, repair: str) -> RepairOfCandidate:
    """Repairs a candidate to be compared, on that text; all of them share the teacher's states on it up to their cuts."""
    opened, config = inputs.opened, _config_for_ranking(inputs.recipe)

    def repaired(candidate: Candidate, kept: KeptLayers | None = None) -> Student | None:
        cut = plan_of(drops_of(candidate.units), size, source=opened.name, source_hash=opened.fingerprint)
        try:
            fitted = fit_plan(
                inputs.view,
                cut,
                samples,
                repair=repair,
                batch_size=inputs.batch_size,
                config=config,
                reuse=Reuse(kept, prefix),
                progress=partial(tell, "repair"),
                workers=inputs.workers,
            )
        except CannotRefit:  # This cut leaves nothing that can be refitted, so it competes as it is.
            return None
        return student_of(inputs.view, fitted.plan, fitted.values)

    return repaired
