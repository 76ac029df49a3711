"""The step that measures: the student before and after healing, on text nothing was chosen on, and the card that says so."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shoal.run.folder import RunFolder
from shoal.run.healing.heal_bench import HealBench
from shoal.words.records import stable_hash, write_atomically

if TYPE_CHECKING:
    from shoal.evaluate.evaluation import Evaluation
    from shoal.measure.oracle import Quality
    from shoal.train.heal.result import HealTraining, Merging


def measure_stage(
    bench: HealBench, folder: RunFolder, training: HealTraining, merging: Merging, *, command: str
) -> tuple[Quality | None, Evaluation | None]:
    """``evaluation.json``, ``before.json``, card and report: the student before and after, on text nothing was chosen on."""
    from shoal.engine.open import load_strictly
    from shoal.engine.view import DecoderView
    from shoal.evaluate.evaluation import Evaluation, closeness
    from shoal.measure.oracle import Quality
    from shoal.run.measuring import against_teacher
    from shoal.run.stages.report import report_stage
    from shoal.show.card import inherited_metadata
    from shoal.show.heal_card import heal_card

    if bench.request.teacher is None or merging.way == "apart":
        return None, None
    key = stable_hash("measured", bench.key, merging.way, bench.inputs.evaluation.data_hash)
    if folder.is_done("evaluation", key):
        return Quality.load(folder / "before.json"), Evaluation.load(folder / "evaluation.json")
    started = time.monotonic()
    inputs, trusts, place = bench.inputs, bench.opening.trust, bench.opening.device
    student = DecoderView(load_strictly(bench.path, device=place, trust_remote_code=trusts))
    before = closeness(inputs.view, student, inputs.batches(inputs.evaluation), workers=inputs.workers).quality
    healed = DecoderView(load_strictly(folder / "model", device=place, trust_remote_code=trusts))
    evaluation = against_teacher(inputs, healed)

    def write() -> None:
        before.save(folder / "before.json")
        evaluation.save(folder / "evaluation.json")
        text = heal_card(
            bench.request.student,
            training,
            merging,
            before=before,
            evaluation=evaluation,
            command=command,
            inherited=inherited_metadata(bench.path),
        )
        write_atomically(folder / "model" / "README.md", text.encode())

    inputs.workers.on_first(write)
    files = ["before.json", "evaluation.json", "model/README.md"]
    folder.finish("evaluation", key, seconds=time.monotonic() - started, files=files)
    inputs.workers.on_first(lambda: report_stage(folder.path))
    return before, evaluation
