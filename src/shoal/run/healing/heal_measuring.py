"""The step that measures: the student before and after healing, on text nothing was chosen on, and the card that says so."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shoal.checkpoint.bundled_code import MODEL_FILE
from shoal.edits.plan import Plan
from shoal.engine.open import load_strictly
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import Evaluation, closeness, compare
from shoal.export.found_plan import found_plan
from shoal.measure.oracle import Quality
from shoal.run.folder import RunFolder
from shoal.run.healing.heal_bench import HealBench
from shoal.run.measuring import against_teacher
from shoal.run.stages.report import report_stage
from shoal.show.before_after import before_after, drift_table
from shoal.show.card import inherited_metadata
from shoal.show.heal_card import heal_card
from shoal.show.table import Table
from shoal.train.heal.result import Drift, HealTraining, Merging
from shoal.words.progress import each_batch, tell
from shoal.words.records import Provenance, stable_hash, write_atomically


@dataclass(frozen=True)
class BeforeAfter:
    """What was measured on the evaluation slice; nothing where there is no healed checkpoint.

    Attributes:
        before, evaluation: the student as it came and healed, against the teacher.
        drift: the same of a student that text alone trained.
    """

    before: Quality | None = None
    evaluation: Evaluation | None = None
    drift: Drift | None = None


def measure_stage(
    bench: HealBench, folder: RunFolder, training: HealTraining, merging: Merging, *, command: str
) -> BeforeAfter:
    """``evaluation.json`` and ``before.json``, or ``drift.json`` without a teacher; card and report."""
    found = BeforeAfter()
    if merging.way != "apart":
        found = (
            _by_teacher(bench, folder, training, merging, command)
            if bench.request.teacher
            else _alone(bench, folder, training, merging, command)
        )
    bench.inputs.workers.on_first(lambda: report_stage(folder.path))
    return found


def _by_teacher(bench: HealBench, folder: RunFolder, training: HealTraining, merging: Merging, command: str) -> BeforeAfter:
    """Before and after, each against the teacher."""
    inputs = bench.inputs
    untimed = [] if inputs.recipe.speed else ["without speed"]
    key = stable_hash("measured", bench.key, merging.way, inputs.evaluation.data_hash, *untimed)
    if folder.is_done("evaluation", key):
        return BeforeAfter(Quality.load(folder / "before.json"), Evaluation.load(folder / "evaluation.json"))
    started = time.monotonic()
    batches = inputs.batches(inputs.evaluation)
    before = closeness(
        inputs.view,
        _opened(bench, bench.path),
        batches,
        after_batch=each_batch("evaluate before", len(batches)),
        workers=inputs.workers,
    ).quality
    evaluation = against_teacher(inputs, _opened(bench, folder / "model"))

    def write() -> None:
        before.save(folder / "before.json")
        evaluation.save(folder / "evaluation.json")
        figures = before_after(before, evaluation)
        _write_card(bench, folder, training, merging, figures=figures, measured=evaluation.provenance, command=command)

    inputs.workers.on_first(write)
    files = ["before.json", "evaluation.json", "model/README.md"]
    folder.finish("evaluation", key, seconds=time.monotonic() - started, files=files)
    return BeforeAfter(before, evaluation)


def _alone(bench: HealBench, folder: RunFolder, training: HealTraining, merging: Merging, command: str) -> BeforeAfter:
    """The healed student against the student as it came, which is the model of the inputs where there is no teacher."""
    inputs = bench.inputs
    key = stable_hash("measured alone", bench.key, merging.way, inputs.evaluation.data_hash)
    if folder.is_done("evaluation", key):
        return BeforeAfter(drift=Drift.load(folder / "drift.json"))
    started = time.monotonic()
    provenance = inputs.provenance(inputs.evaluation)
    both = compare(
        inputs.view,
        _opened(bench, folder / "model"),
        inputs.batches(inputs.evaluation),
        provenance=provenance,
        start=inputs.evaluation.start,
        progress=partial(tell, "evaluate"),
        workers=inputs.workers,
    )
    drift = Drift(
        provenance=provenance,
        perplexity_before=both.teacher.perplexity.value,
        perplexity=both.student.perplexity.value,
        kl=both.quality.kl,
        agreement=both.quality.agreement,
    )

    def write() -> None:
        drift.save(folder / "drift.json")
        _write_card(bench, folder, training, merging, figures=drift_table(drift), measured=provenance, command=command)

    inputs.workers.on_first(write)
    folder.finish("evaluation", key, seconds=time.monotonic() - started, files=["drift.json", "model/README.md"])
    return BeforeAfter(drift=drift)


def _opened(bench: HealBench, path: Path) -> DecoderView:
    place = bench.opening
    return DecoderView(load_strictly(path, device=place.device, trust_remote_code=place.trust))


def _write_card(
    bench: HealBench,
    folder: RunFolder,
    training: HealTraining,
    merging: Merging,
    *,
    figures: Table,
    measured: Provenance,
    command: str,
) -> None:
    text = heal_card(
        bench.request.student,
        training,
        merging,
        figures=figures,
        measured=measured,
        has_teacher=bench.request.teacher is not None,
        command=command,
        inherited=inherited_metadata(bench.path),
        plan=_plan_of(bench),
        brings_code=(folder / "model" / f"{MODEL_FILE}.py").is_file(),
    )
    write_atomically(folder / "model" / "README.md", text.encode())


def _plan_of(bench: HealBench) -> Plan | None:
    """What made the student: the last plan of its run, with the weights that were set to zero, else the one that was given."""
    stated = bench.request.plan
    return found_plan(bench.path)[0] or (Plan.load(Path(stated)) if stated is not None else None)
