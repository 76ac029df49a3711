"""The merging of a run: its model, a part of its calibration text, its metric; what was tried is ``merging.json``."""

from __future__ import annotations

from shoal.edits.merge_rules import RULES
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.merge_on_model import MergesOnModel
from shoal.run.searching import searched_text
from shoal.words.progress import each_batch
from shoal.words.records import stable_hash

MERGING = "merging.json"


def merges_of(inputs: Inputs, *, folder: RunFolder) -> MergesOnModel:
    """Runs merged students, with what an earlier run of the same folder tried."""
    recipe, samples = inputs.recipe, searched_text(inputs)
    batches = inputs.batches(samples)
    return MergesOnModel(
        inputs.view,
        batches,
        RULES.named(recipe.merge.rule),
        metric=recipe.search.metric,
        file=folder / MERGING,
        key=stable_hash("merging", inputs.model_key, samples.data_hash, recipe.search.metric, recipe.merge.rule),
        workers=inputs.workers,
        after_batch=each_batch(f"merge by {recipe.search.metric}", len(batches)),
    )


def merges_said(inputs: Inputs, trial: MergesOnModel | None) -> str:
    """What a plan's method adds: ``; similarity 0.71 at the threshold 0.695; 31 merged models run by ...``."""
    if trial is None:
        return ""
    metric, n_tokens = inputs.recipe.search.metric, searched_text(inputs).n_tokens
    return f"; {trial.chosen}; {trial.n_tried} merged models run by {metric} on {n_tokens:,} tokens"
