"""The stage evaluation: teacher and checkpoint on text nothing was chosen on, in ``evaluation.json`` and the model card."""

from __future__ import annotations

from dataclasses import replace

from shoal.checkpoint.write import is_bundled
from shoal.edits.plan import Plan
from shoal.engine.open import load_strictly
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.cost import cost
from shoal.evaluate.evaluation import Evaluation
from shoal.recipes.listing import bibtex
from shoal.run.folder import RunFolder
from shoal.run.keys import evaluation_key
from shoal.run.measuring import against_teacher
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.pace import Pace
from shoal.run.stage import Made, Stage, State
from shoal.show.card import card, inherited_metadata
from shoal.words.records import write_atomically
from shoal.words.structure import stored, units_of
from shoal.words.types import Unit


def key(state: State) -> str | None:
    healed = None if state.healed is None else state.healed.key
    return evaluation_key(state.inputs, state.planned, state.values.digest, healed=healed)


def load(state: State, folder: RunFolder) -> State:
    return replace(state, evaluation=Evaluation.load(folder / "evaluation.json"))


def run(state: State, folder: RunFolder) -> Made:
    inputs, plan, healed = state.inputs, state.planned, state.healed
    # The student of a streamed model equals the checkpoint, as was verified, unless that was healed.
    student: DecoderView | Student = replace(state.student(), name="student")
    if not inputs.is_streamed or healed is not None:
        opening = inputs.opened.opening.trusting(is_bundled(inputs.view, plan))
        student = DecoderView(load_strictly(folder / "model", device=str(inputs.view.device), trust_remote_code=opening.trust))
    plain = None
    if plan.absent_layers and (state.values.tensors or state.healed is not None):
        plain = Student(removed=units_of(plan.structure, plan.n_layers), name="plain cut")
    evaluation = without_zeros(against_teacher(inputs, student, plain=plain), student, plan)

    def write() -> None:
        evaluation.save(folder / "evaluation.json")
        text = card(
            plan,
            evaluation,
            recipe_name=inputs.recipe.name,
            command=state.command,
            citations=[bibtex(paper) for paper in inputs.recipe.papers],
            trained=state.trained,
            thinned=state.thinned,
            healed="" if healed is None else f"{healed.training}; merged: {healed.merging.way}",
            not_healed=state.not_healed,
            inherited=inherited_metadata(inputs.opened.path),
        )
        write_atomically(folder / "model" / "README.md", text.encode())

    inputs.workers.on_first(write)
    return Made(replace(state, evaluation=evaluation), ("evaluation.json", "model/README.md"))


def takes(sizes: Sizes) -> StageNeed:
    n = sizes.tokens("evaluation")
    second = sizes.second_model if sizes.recipe.heal is None else sizes.student  # A healed student is opened whole.
    return sizes.need("evaluation", second_model=second, states=sizes.states(3, n), work=sizes.judging(n))


# The depths are those of teacher, student, and two smaller depths of the teacher.
SPEED_ROUNDS, NEW_TOKENS, DEPTHS = 10, 32, 2.7
PROMPT_TOKENS = 512


def lasts(pace: Pace) -> dict[str, float]:
    """Teacher, plain cut and student on the text, and how fast they run: one token alone costs as much as 16 of many."""
    spoken = SPEED_ROUNDS * DEPTHS * (min(PROMPT_TOKENS, pace.inputs.length) + 16 * NEW_TOKENS)
    return {"evaluation": pace.tokens("evaluation") * (7 * pace.rates.layers + 2.5 * pace.rates.compared) + pace.layers(spoken)}


def without_zeros(evaluation: Evaluation, student: DecoderView | Student, plan: Plan) -> Evaluation:
    """With the cost of a saved student as it is where sublayers that are zero are not run: they stand in its layers."""
    off = frozenset(Unit(kind, place) for place, slot in enumerate(stored(plan.structure)) for kind in slot.off)
    if not off or isinstance(student, Student):
        return evaluation
    stored_cost = evaluation.student.cost
    found = cost(student, context=stored_cost.context, student=Student(removed=off))
    figures = evaluation.student.model_copy(update={"cost": found.model_copy(update={"file_bytes": stored_cost.file_bytes})})
    return evaluation.model_copy(update={"student": figures})


EVALUATE = Stage("evaluation", "what was lost and won, on text that nothing was chosen on", key, run, load, takes, lasts)
