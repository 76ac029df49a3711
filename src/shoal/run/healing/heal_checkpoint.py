"""``shoal heal``: a checkpoint trained, merged, verified and measured against its teacher; and the same as a stage of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.engine.opening import Opening
from shoal.evaluate.evaluation import Evaluation
from shoal.export.found_plan import REQUEST
from shoal.measure.oracle import Quality
from shoal.recipes.recipe import Recipe
from shoal.run.asked import asked_of
from shoal.run.begin import Say, open_folder, say_nothing, settled
from shoal.run.folder import OtherRun, RunFolder, checkpoint_of
from shoal.run.healing.heal_bench import HealBench
from shoal.run.healing.heal_measuring import measure_stage
from shoal.run.healing.heal_merging import merge_stage
from shoal.run.healing.heal_request import HealRequest
from shoal.run.healing.heal_training import train_stage
from shoal.run.job import SHARE_BESIDE_STUDENT, Inputs, open_inputs
from shoal.train.heal.quiet import quiet_training
from shoal.train.heal.result import Drift, HealTraining, Merging
from shoal.words.progress import numbered, tell
from shoal.words.reading import at_home
from shoal.words.records import write_atomically

ON_DISK = "2"  # The layer that runs is in memory, and the one that is read ahead.


@dataclass(frozen=True, eq=False, repr=False)
class Healed:
    """What a healing left; every value is also a file of ``folder``.

    Attributes:
        model: the healed checkpoint; None where the merge was refused or not asked for, and ``adapter`` is the result.
        before, evaluation: the student before and after healing against its teacher, on the evaluation slice; None without a
            teacher.
        drift: the same without a teacher: what text alone changed.
    """

    folder: Path
    model: Path | None
    adapter: Path | None
    training: HealTraining
    merging: Merging
    before: Quality | None
    evaluation: Evaluation | None
    drift: Drift | None = None

    @property
    def repaired(self) -> float | None:
        """Share of the damage, KL to the teacher, that healing took away; below 0 where it made it worse."""
        if self.before is None or self.evaluation is None or not self.before.kl:
            return None
        return 1 - self.evaluation.quality.kl / self.before.kl

    def __repr__(self) -> str:
        """A few lines: the training, what it gained, where it lies. Every value is an attribute."""
        lines = [f"{self.training}"]
        if self.evaluation is not None:
            lines.append(f"{self.evaluation}")
        if self.repaired is not None:
            lines.append(f"{self.repaired:.0%} of the cut's KL to the teacher taken away")
        lines.append(f"checkpoint {self.model}" if self.model is not None else f"not merged: adapter {self.adapter}")
        return "\n".join([*lines, f"report {self.folder / 'report.html'}"])


def heal_checkpoint(
    request: HealRequest,
    out: str | Path,
    *,
    opening: Opening = Opening(),
    overwrite: bool = False,
    command: str = "",
    say: Say = say_nothing,
) -> Healed:
    """Heal a checkpoint.

    Args:
        out: run folder: new, empty, or left by an earlier run, which is continued.
        opening: its precision and the layers in memory are the teacher's; the student keeps its checkpoint's, all in memory.
        overwrite: stages that stand with other inputs may be replaced.
        command: recorded in ``run.json`` and on the card.
        say: told how many of the teacher's layers are in memory, where nothing was asked for.
    Raises:
        ValueError: one line for anything the user can mend.
        ImportError: an extra that is not installed, named.
    """
    student = checkpoint_of(request.student)
    refuse_inside(Path(out), student)
    folder = open_folder(Path(out), command=command, overwrite=overwrite)
    asked = Recipe(model=request.teacher or student, text=request.text, speed=request.speed, seed=request.seed)
    with folder.unless_refused():
        inputs = open_inputs(asked, teacher_opening(request, opening, say=say), share=SHARE_BESIDE_STUDENT)
    with quiet_training():
        with folder.unless_refused():
            bench = HealBench(inputs, request, student)
        folder.asked = asked_of(asked, inputs.opened, **request.model_dump(mode="json"), student_weights=bench.fingerprint)
        with _asked(bench, folder):
            return heal_stages(bench, folder, command=command)


@contextmanager
def _asked(bench: HealBench, folder: RunFolder) -> Iterator[None]:
    """The request as a file of the run; where results of another one stand and this one is refused, theirs stays."""
    file, workers = folder / REQUEST, bench.inputs.workers
    before = file.read_bytes() if file.is_file() else None
    workers.on_first(lambda: bench.request.save(file))
    try:
        yield
    except OtherRun:
        if before is not None and workers.is_first:  # The others may have met no error, and would not take part.
            write_atomically(file, before)
        raise


def teacher_opening(request: HealRequest, opening: Opening, *, say: Say) -> Opening:
    """With what ``resident="auto"`` means for the teacher: in memory where it fits beside the student; on disk where its form
    in few bits does the teaching, so that it is read for the measures alone."""
    if request.teacher is None:
        return opening.in_memory()  # Nothing runs this model.
    if request.heal.teacher_bits is not None and opening.resident == "auto":
        return replace(opening, resident=ON_DISK)
    return settled(
        request.teacher, opening, share=SHARE_BESIDE_STUDENT, say=lambda line: say(f"Teacher: {line[0].lower()}{line[1:]}")
    )


def refuse_inside(out: Path, student: str) -> None:
    """Raises ValueError where the run folder would lie inside the student's checkpoint, or be the run that it is part of."""
    out, source = at_home(out), at_home(Path(student))
    if source.is_dir() and (out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve())):
        raise ValueError(f"--out {out} and the student {source} overlap; choose a folder outside it")


def heal_stages(bench: HealBench, folder: RunFolder, *, command: str) -> Healed:
    """Train, merge and write, evaluate."""
    of_training, of_merge, of_measures = numbered(True, True, True)
    with of_training:
        training = train_stage(bench, folder)
    with of_merge:
        tell("merge and write", 0, 1)
        merging = merge_stage(bench, folder, training)
    bench.__dict__.pop("pupil", None)  # It would stand beside the students that are measured, and refers to itself.
    gc.collect()
    model, adapter = folder / "model", folder / "adapter"
    with of_measures:
        measured = measure_stage(bench, folder, training, merging, command=command)
    return Healed(
        folder.path,
        model if merging.way != "apart" else None,
        adapter if adapter.is_dir() else None,
        training,
        merging,
        measured.before,
        measured.evaluation,
        measured.drift,
    )


@dataclass(frozen=True, eq=False)
class HealedInRun:
    """What healing adds to a run: its training, its merge, and the key of its inputs."""

    training: HealTraining
    merging: Merging
    key: str


def heal_in_run(inputs: Inputs, folder: RunFolder, student: Path) -> HealedInRun:
    """The healing of a run: the student that was cut and repaired, healed by its teacher into ``model/``.

    Raises:
        ValueError: the merge lost too much, so there is no checkpoint.
    """
    config = inputs.recipe.heal
    assert config is not None
    request = HealRequest(student=str(student), teacher=inputs.opened.name, plan=str(folder / "plan.json"), heal=config)
    with quiet_training():
        bench = HealBench(inputs, request, str(student))
        training = train_stage(bench, folder)
        merging = merge_stage(bench, folder, training, has_to_merge=True)
    return HealedInRun(training, merging, bench.key)
