"""How many parameters a training trains, and which layers its steps run: from sizes alone.

One span is assumed unless the selector looks for several: where the guard picks a candidate of several, each takes as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.fit.table import repair_named
from shoal.recipes.recipe import Recipe
from shoal.train.config import TrainConfig
from shoal.words.model_shape import ModelShape

if TYPE_CHECKING:
    from shoal.select.budget import ResolvedBudget


@dataclass(frozen=True)
class Training:
    """What one training holds.

    Attributes:
        parameters: trained in all; ``modules``: of them those of replacements; ``at_once``: of them those that are trained at a
            time, where one part is trained after the other.
        most_run: most layers that a step runs with gradients; ``most_kept``: of them those that are the model's own.
        widened: bytes of fp32 copies of what a refit leaves of its layer.
    """

    parameters: int
    modules: int
    at_once: int
    most_run: int
    most_kept: int
    widened: int


def training_of(recipe: Recipe, config: TrainConfig, shape: ModelShape, *, cut: ResolvedBudget, kept: int) -> Training:
    """Of a recipe that trains as ``config`` says; ``kept``: layers of the student that are the model's own."""
    from shoal.edits.replace.table import parse_replacement

    kind = parse_replacement(recipe.replace)
    several = {"disjoint": recipe.max_spans, "lowest": cut.n}
    n_spans = 0 if kind is None else min(several.get(recipe.select, 1), cut.n)
    per_span = 0 if kind is None else max(1, kind.n_layers)  # a stream module is at most a layer
    modules, refits = n_spans * per_span, repair_named(recipe.repair).size(shape, kept)
    parameters = at_once = modules * shape.layer_parameters + refits.parameters
    if config.several == "sequential":  # one module or one layer's refit after the other
        at_once = max(per_span * shape.layer_parameters, min(refits.parameters, shape.layer_parameters))
        runs_on, alone = on_logits(config), per_span
    else:
        runs_on, alone = n_spans > 1 or refits.layers > 1 or on_logits(config), modules
    return Training(
        parameters=parameters,
        modules=modules * shape.layer_parameters,
        at_once=at_once,
        most_run=kept if runs_on else max(alone, 1),
        most_kept=kept if runs_on else min(refits.layers, 1),
        widened=refits.layers * shape.layer_parameters * 4 if shape.itemsize < 4 else 0,
    )


def on_logits(config: TrainConfig) -> bool:
    """Whether any stage compares logits, so that every layer behind what is trained runs."""
    from shoal.train.objectives import weighted_sum

    return any(weighted_sum(stage.objective).needs - {"boundary"} for stage in config.schedule())
