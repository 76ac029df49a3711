"""The stage healed: the student of ``cut/`` trained by its teacher and merged into ``model/``; its steps are in run/healing."""

import gc
import shutil
from dataclasses import replace

from shoal.checkpoint.verify import Verification
from shoal.recipes.recipe import Recipe
from shoal.run.folder import NOT_HEALED, OtherRun, RunFolder
from shoal.run.keys import save_key
from shoal.run.memory_plan.sizes import TRAINED_BYTES, Sizes, StageNeed
from shoal.run.pace import Pace
from shoal.run.stage import Made, Stage, State
from shoal.train.config import DEFAULT_TOKENS
from shoal.train.heal.config import HealConfig
from shoal.train.heal.table import TRAINABLE
from shoal.words.progress import silent, watched
from shoal.words.records import stable_hash, write_atomically

PROOF = "verification.json"


def _config(recipe: Recipe) -> HealConfig:
    assert recipe.heal is not None, "a recipe without healing has not this stage"
    return recipe.heal


def key(state: State) -> str:
    student = save_key(state.inputs, state.planned, state.values.digest)
    return stable_hash("healed", student, _config(state.recipe).model_dump(mode="json"))


def run(state: State, folder: RunFolder) -> Made:
    """Training and merge keep records of their own, so that a run that was killed between them goes on."""
    # A run that was killed may have left one that no record names.
    state.inputs.workers.on_first(lambda: folder.remove(NOT_HEALED))
    try:
        return Made(_healed(state, folder), ())
    except OtherRun:
        raise
    except ValueError as error:
        # The others of several processes may have met no error, so that they would wait for this one.
        if not _config(state.recipe).optional or state.inputs.workers.size > 1:
            raise
        why = str(error)
    gc.collect()  # As behind a healing that ended well.
    _take_over(state, folder, why=why)
    return Made(replace(state, model=folder / "model", not_healed=why), (NOT_HEALED,))


def load(state: State, folder: RunFolder) -> State:
    failed = folder / NOT_HEALED
    why = state.inputs.workers.from_first(lambda: failed.read_text() if failed.exists() else "")
    if why:
        return replace(state, model=folder / "model", not_healed=why)
    with watched(silent):
        return _healed(state, folder)


def _healed(state: State, folder: RunFolder) -> State:
    from shoal.run.healing.heal_checkpoint import heal_in_run

    assert state.model is not None, "there is nothing to heal before a student is written"
    healed = heal_in_run(state.inputs, folder, state.model)
    gc.collect()  # The student with its adapters is a circle of references; it would stand beside the one that is evaluated.
    return replace(state, healed=healed, model=folder / "model")


def _take_over(state: State, folder: RunFolder, *, why: str) -> None:
    """The checkpoint that was to be healed takes the final name, with its proof and the record of one that is not healed."""
    cut = state.model
    assert cut is not None
    folder.forget(["model", "heal"])
    for name in ("model", "adapter", "heal"):
        folder.remove(name)
    shutil.copytree(cut, folder / "model")
    proof = Verification.load(cut.with_name("cut.verification.json"))
    proof.model_copy(update={"path": "model"}).save(folder / PROOF)
    write_atomically(folder / NOT_HEALED, why.encode())
    key = save_key(state.inputs, state.planned, state.values.digest)
    folder.finish("model", key, seconds=0.0, files=("model", PROOF))


def takes(sizes: Sizes) -> StageNeed:
    """Teacher and student in memory, what the entry of the method trains, and the teacher's final states of the selection text;
    then the student again, to be merged into."""
    from shoal.train.heal.teacher_cache import bytes_per_token
    from shoal.train.heal.teachers import MOST_REMEMBERED

    config = _config(sizes.recipe)
    cached = 0 if config.teacher_cache is None else bytes_per_token(config.teacher_cache, sizes.shape.vocabulary)
    n_trained = TRAINABLE.named(config.method).most_trained(sizes.shape, sizes.n_kept, config)
    n_tokens = config.tokens or DEFAULT_TOKENS
    text = sizes.recipe.text
    is_as_asked = text.length is not None or text.packing == "padded"
    length = sizes.length if is_as_asked else config.sample_length(n_tokens, sizes.length)
    n_at_once = config.settled(n_tokens / length, length).micro_batch * length
    remembered = min(MOST_REMEMBERED, sizes.all_states(1, sizes.tokens("selection")))
    return sizes.need(
        "heal",
        second_model=2 * sizes.student,
        work=sizes.gradients(n_at_once, sizes.n_kept, logits=True) + remembered,
        trained=n_trained * TRAINED_BYTES,
        disk=sizes.student + n_trained * (12 + 4) + cached * n_tokens,
    )


def lasts(pace: Pace) -> dict[str, float]:
    """The training, and the short runs that look for its learning rate."""
    from shoal.train.heal.rates import usual_tokens

    config = _config(pace.recipe)
    n_tokens = config.tokens or DEFAULT_TOKENS
    return {"healing": pace.training(n_tokens + (usual_tokens(n_tokens) if config.lr == "auto" else 0))}


HEAL = Stage(
    "healed",
    "training after the cut: a checkpoint in, a checkpoint out",
    key,
    run,
    load,
    takes,
    lasts,
    is_asked=lambda recipe: recipe.heal is not None,
    steps=("heal",),
)
