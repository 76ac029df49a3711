"""The stage predict: weights of new layers that are predicted from their neighbours, in ``predict.safetensors``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from shoal.edits.inits import INITS
from shoal.edits.insert import Insert
from shoal.edits.plan import Plan
from shoal.fit.lesa import predicted
from shoal.fit.prediction import Prediction
from shoal.recipes.recipe import Recipe
from shoal.run.folder import RunFolder
from shoal.run.keys import edits_key
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.stage import Made, Stage, State, Values, read_values, write_values
from shoal.words.progress import tell
from shoal.words.records import stable_hash

PREDICTED = "predict.safetensors"


def to_predict(plan: Plan) -> tuple[Insert, ...]:
    """The edits of a plan whose weights are predicted."""
    return tuple(edit for edit in plan.edits if isinstance(edit, Insert) and edit.start.weights == "predicted")


def key(state: State) -> str | None:
    if not to_predict(state.planned):
        return None
    return stable_hash("predict", state.inputs.model_key, edits_key(state.planned), state.inputs.recipe.seed)


def load(state: State, folder: RunFolder) -> State:
    found = Prediction.load(folder / "predict.json")
    return replace(state, values=read_values(folder / PREDICTED, found.values_digest))


def run(state: State, folder: RunFolder) -> Made:
    inputs = state.inputs
    values, maps = predicted(
        inputs.view,
        to_predict(state.planned),
        seed=inputs.recipe.seed,
        after_map=partial(tell, "predict"),
    )

    def write() -> str:
        digest = write_values(folder / PREDICTED, values).digest
        Prediction(maps=maps, values_digest=digest).save(folder / "predict.json")
        return digest

    digest = folder.workers.from_first(write)
    return Made(replace(state, values=Values(values, digest)), (PREDICTED, "predict.json"))


def takes(sizes: Sizes) -> StageNeed:
    """The weights of one map of all layers in fp64 with their blocks of the basis, and the values of the new layers."""
    shape = sizes.shape
    n_new = max(0, -sizes.n_removed)
    one_map = shape.hidden * max(shape.ffn, shape.hidden)
    values = n_new * shape.layer_bytes
    return sizes.need("predict", sums=2 * shape.n_layers * one_map * 8, values=values, disk=values)


def is_asked(recipe: Recipe) -> bool:
    """Whether the recipe adds layers whose weights are predicted."""
    return recipe.grow is not None and INITS.named(recipe.grow.init).weights == "predicted"


PREDICT = Stage("predict", "weights of new layers, predicted from those around them", key, run, load, takes, is_asked=is_asked)
