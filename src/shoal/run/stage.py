"""A stage of a run, and the one runner of all of them.

A stage is keyed by a hash of everything its result depends on. It runs when nothing stands under that key, else it is read
back. Its files are written once: no stage writes a file of another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from shoal.edits.plan import Plan
from shoal.edits.student_of import student_of
from shoal.engine.student import Student
from shoal.engine.tensors import each_tensor, save_tensors
from shoal.evaluate.evaluation import Evaluation
from shoal.fit.fit_result import FitResult
from shoal.measure.oracle import Oracle
from shoal.measure.scan import Scan
from shoal.prune.thin_result import ThinResult
from shoal.recipes.recipe import Recipe
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.pace import Pace
from shoal.select.budget import Budget
from shoal.train.train_result import TrainResult
from shoal.words.progress import stage_of, tell
from shoal.words.records import file_digest

if TYPE_CHECKING:
    from shoal.run.healing.heal_checkpoint import HealedInRun


@dataclass(frozen=True, eq=False)
class Values:
    """The tensors beside a plan, as one file.

    Attributes:
        tensors: under the names of the plan's values.
        digest: of the file, made once when it was written; empty where there is none.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""


NO_VALUES = Values()


@dataclass(frozen=True, eq=False)
class State:
    """What a run knows so far: its inputs, and what each stage added. A stage gets a state and gives a new one.

    Attributes:
        command: as given, for ``run.json`` and the card.
        budget: the recipe's unless given, as for the points of a curve.
        judge: measures candidates on the ``selection`` text; a new one unless given.
        sets: the folder that keeps what searches measure, where several plans share it; the run's own unless given.
        scan: None where nothing reads the scores.
        plan: as chosen, then with its refits and its zeros.
        values: beside the plan.
        repaired, trained, thinned: the records of fit, polish and prune.
        model: the folder of the checkpoint.
        healed: how it was healed, where the recipe asks for that; ``not_healed``: why an optional healing
            was left out or failed.
    """

    inputs: Inputs
    command: str = ""
    budget: Budget | None = None
    judge: Oracle | None = None
    sets: RunFolder | None = None
    scan: Scan | None = None
    plan: Plan | None = None
    values: Values = NO_VALUES
    repaired: FitResult | None = None
    trained: tuple[TrainResult, ...] = ()
    thinned: ThinResult | None = None
    model: Path | None = None
    healed: HealedInRun | None = None
    not_healed: str = ""
    evaluation: Evaluation | None = None

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    @property
    def planned(self) -> Plan:
        """The plan, which the stages after the choice need."""
        assert self.plan is not None, "a stage ran before the choice"
        return self.plan

    def student(self) -> Student:
        """The student of the plan with its values."""
        return student_of(self.inputs.view, self.planned, self.values.tensors)


@dataclass(frozen=True)
class Made:
    """What running a stage left: the state after it, and its files (relative to the run folder)."""

    state: State
    files: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """An entry of the table of stages.

    Attributes:
        name: in ``run.json``.
        about: one line for people.
        key: everything the result depends on; None where the plan leaves nothing to do.
        run: does it and writes its files.
        load: reads back what :attr:`run` left.
        takes: most memory and disk of it, from sizes alone.
        lasts: about how many seconds, by what people call the things it does; empty where that is little.
        record: the name in ``run.json`` where it depends on what the run does; ``name`` unless given.
        steps: names in ``run.json`` of what it finishes on the way; they go with it where a recipe has the stage no more.
        is_asked: whether a recipe has this stage at all. Nothing else is called where it has not.
    """

    name: str
    about: str
    key: Callable[[State], str | None]
    run: Callable[[State, RunFolder], Made]
    load: Callable[[State, RunFolder], State]
    takes: Callable[[Sizes], StageNeed]
    lasts: Callable[[Pace], Mapping[str, float]] = lambda pace: {}
    record: Callable[[State], str] | None = None
    is_asked: Callable[[Recipe], bool] = lambda recipe: True
    steps: tuple[str, ...] = ()


def run_stage(stage: Stage, state: State, folder: RunFolder) -> State:
    """The state after a stage, run or read back.

    Raises:
        ValueError: the stage stands with other inputs and ``overwrite`` was not given; and what the stage itself refuses.
    """
    with folder.unless_refused():
        key = stage.key(state) if stage.is_asked(state.recipe) else None
        name = stage.name if stage.record is None else stage.record(state)
        if key is None:
            for one in (name, *stage.steps):
                if one in folder.record.stages:
                    folder.is_done(one, "none")  # What stands is refused without --overwrite, else forgotten.
            return state
        if folder.is_done(name, key):
            return stage.load(state, folder)
        started = time.monotonic()
        tell(name, 0, 1)
        made = stage.run(state, folder)
    folder.finish(name, key, seconds=time.monotonic() - started, files=made.files)
    return made.state


def run_all(stages: Iterable[Stage], state: State, folder: RunFolder) -> State:
    """The state after some stages, in order. Progress says which of those that the recipe asks for is at work."""
    every = list(stages)
    n, k = sum(stage.is_asked(state.recipe) for stage in every), 0
    for stage in every:
        k += stage.is_asked(state.recipe)
        with stage_of(k, n):
            state = run_stage(stage, state, folder)
    return state


def write_values(path: Path, tensors: Mapping[str, Tensor]) -> Values:
    """Write the tensors beside a plan under their final name, and make their digest."""
    save_tensors(path, tensors)
    return Values(tensors, file_digest(path))


def read_values(path: Path, digest: str) -> Values:
    """What :func:`write_values` wrote; ``digest`` as it was recorded then. None of them where the digest is empty."""
    return Values(dict(each_tensor(path)), digest) if digest else NO_VALUES
