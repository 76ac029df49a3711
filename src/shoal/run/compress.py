"""The main job: a recipe and a folder in, a verified checkpoint with its figures out. Stages in order; all can be resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.edits.plan import Plan
from shoal.engine.beside import Beside
from shoal.engine.opening import Opening
from shoal.evaluate.evaluation import Evaluation
from shoal.fit.fit_result import FitResult
from shoal.measure.scan import Scan
from shoal.prune.thin_result import ThinResult
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe, with_changes
from shoal.run.begin import open_to_cut
from shoal.run.folder import NOT_HEALED, RunFolder
from shoal.run.job import Inputs
from shoal.run.stage import State, run_all
from shoal.run.stages.report import report_stage
from shoal.run.stages.table import STAGES
from shoal.train.train_result import TrainResult
from shoal.words.progress import Progress, told
from shoal.words.records import write_atomically
from shoal.words.refusal import in_one_line

if TYPE_CHECKING:
    from shoal.run.healing.heal_checkpoint import HealedInRun


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """What a run left: every value is also a file of ``folder``; ``model`` loads with plain transformers.

    ``beside`` says what the source's folder holds beside the decoder; ``not_healed``, why an optional healing was left
    out or failed.
    """

    folder: Path
    model: Path
    scan: Scan | None
    plan: Plan
    repaired: FitResult | None
    trained: tuple[TrainResult, ...]
    evaluation: Evaluation
    thinned: ThinResult | None
    beside: Beside
    healed: HealedInRun | None = None
    not_healed: str = ""

    def __repr__(self) -> str:
        """A few lines: what was removed, what that cost, where it lies. Every value is an attribute."""
        lines = [
            f"{self.plan}",
            f"{self.evaluation}",
            *([f"not healed: {self.not_healed}"] if self.not_healed else []),
            f"checkpoint {self.model}",
            f"report {self.folder / 'report.html'}",
        ]
        return "\n".join(lines)


@in_one_line
def compress(
    recipe: Recipe | str,
    out: str | Path,
    *,
    opening: Opening = Opening(),
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
    **changes: Any,
) -> Outcome:
    """Measure, choose, cut, repair, save, verify, evaluate.

    ``compress("default", "out", model="org/name", drop="25%")`` is all that most need.

    Args:
        recipe: what to do: a recipe, the name of one, or a YAML file.
        out: run folder: new, empty, or left by an earlier run, which is continued from its last finished stage.
        opening: device, precision, layers in memory and trust; ``Opening(device="cuda")``, say.
        overwrite: stages that stand with other inputs may be replaced.
        command: recorded in ``run.json`` and on the card.
        progress: called with (what, done, total); unless given, lines are printed in a notebook and nothing elsewhere.
        changes: fields of the recipe that differ, nested ones as mappings: ``text={"sources": ["mine.jsonl"]}``.
    Raises:
        ValueError: one line for anything the user can mend.
    """
    recipe = load_recipe(recipe, changes) if isinstance(recipe, str) else with_changes(recipe, changes)
    with told(progress):
        inputs, folder = open_to_cut(recipe, Path(out), opening, overwrite=overwrite, command=command)
        return run_stages(inputs, folder, command=command)


def run_stages(inputs: Inputs, folder: RunFolder, *, command: str = "") -> Outcome:
    """All stages on inputs that are open."""
    is_new = folder.overwrite or not (folder / "recipe.yaml").exists()
    if inputs.workers.is_first and is_new:
        # Where results of another run stand, these are written at the end: a refused run leaves theirs.
        _write_what_is_done(folder, inputs.recipe, inputs.not_healed)
    state = run_all(STAGES.values(), State(inputs, command=command, not_healed=inputs.not_healed), folder)
    inputs.workers.on_first(lambda: _write_what_is_done(folder, inputs.recipe, state.not_healed))
    if not state.not_healed:  # A run before this one may have left its reason.
        inputs.workers.on_first(lambda: folder.remove(NOT_HEALED))
    inputs.workers.on_first(lambda: report_stage(folder.path))
    assert state.model is not None and state.evaluation is not None, "the stages end with a model and its evaluation"
    return Outcome(
        folder=folder.path,
        model=state.model,
        scan=state.scan,
        plan=state.planned,
        repaired=state.repaired,
        trained=state.trained,
        evaluation=state.evaluation,
        thinned=state.thinned,
        beside=inputs.opened.beside,
        healed=state.healed,
        not_healed=state.not_healed,
    )


def _write_what_is_done(folder: RunFolder, recipe: Recipe, not_healed: str) -> None:
    """The recipe as this run follows it, and why that has no healing where it might have had."""
    write_atomically(folder / "recipe.yaml", recipe.to_yaml().encode())
    if not_healed:
        write_atomically(folder / NOT_HEALED, not_healed.encode())
