"""The stage model: the student as a checkpoint, proved to be the student before it takes its name.

The folder is ``model/``, or ``cut/`` where the student is to be healed into ``model/``.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from shoal.checkpoint.new_folder import new_folder
from shoal.checkpoint.verify import verify, verify_streamed
from shoal.checkpoint.write import is_bundled, write
from shoal.engine.streamed import Streamed
from shoal.run.folder import RunFolder
from shoal.run.keys import save_key
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.stage import Made, Stage, State
from shoal.words.types import Batch


def key(state: State) -> str | None:
    return save_key(state.inputs, state.planned, state.values.digest)


def record(state: State) -> str:
    return "model" if state.inputs.recipe.heal is None else "cut"


def proof(state: State) -> str:
    return "verification.json" if record(state) == "model" else "cut.verification.json"


def run(state: State, folder: RunFolder) -> Made:
    ids_BT = state.inputs.evaluation.ids_NT[
        :2
    ]  # The first process reads text for all of them, and cannot while it works alone.
    state.inputs.workers.on_first(lambda: _save_and_verify(state, folder, ids_BT))
    return Made(load(state, folder), (record(state), proof(state)))


def load(state: State, folder: RunFolder) -> State:
    return replace(state, model=folder / record(state))


def _save_and_verify(state: State, folder: RunFolder, ids_BT: Tensor) -> None:
    """The checkpoint takes its name when it has been proved, on these tokens, to be the student, and not before."""
    inputs, plan = state.inputs, state.planned
    view, opening = inputs.view, inputs.opened.opening.trusting(is_bundled(inputs.view, plan))
    folder.remove(record(state))  # A run that died before it recorded the stage may have left it.
    with new_folder(folder / record(state)) as made:
        write(view, inputs.opened.path, plan, made, values=state.values.tensors)
        reference = view.logits(Batch(ids_BT), student=state.student())
        if isinstance(view.residency, Streamed):
            view.residency.settle(())  # The layers of the checkpoint are read next.
            checked = verify_streamed(made, ids_BT=ids_BT, reference_BTV=reference, trust_remote_code=opening.trust)
        else:
            checked = verify(made, ids_BT=ids_BT, reference=lambda ids: reference, opening=opening)
    checked.model_copy(update={"path": record(state)}).save(folder / proof(state))


def takes(sizes: Sizes) -> StageNeed:
    """The student is opened beside its teacher, and both run two samples."""
    n = 2 * sizes.length
    work = n * sizes.shape.vocabulary * 4 + sizes.layer_work(sizes.n_batch)
    name = "model" if sizes.recipe.heal is None else "cut"
    return sizes.need(name, second_model=sizes.second_model, work=work, disk=sizes.student)


WRITE = Stage(
    "model",
    "a checkpoint that plain transformers loads, reloaded and compared with the student",
    key,
    run,
    load,
    takes,
    record=record,
)
