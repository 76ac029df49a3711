"""What engines made of a student, kept where people look: the record beside the file, the model card, the run's report."""

from collections.abc import Sequence
from pathlib import Path

from shoal.export.proof_record import Proof, record, records_in
from shoal.run.folder import RECORD as RUN_RECORD
from shoal.words.records import write_atomically


def keep(file: Path, against: Path, proofs: Sequence[Proof]) -> list[Path]:
    """Write the record, and renew card and report of the run that the student is of.

    Args:
        file, against: as they were proved; the run is that of ``against``, else of ``file``.
    Returns: the files that were written.
    """
    run = run_of(against) or run_of(file)
    if run is None:
        return [record(file, against, proofs)]
    from shoal.engine.source import fingerprint
    from shoal.run.stages.report import PAGE, report_stage
    from shoal.show.engine_table import with_engines

    student = fingerprint(run / "model")
    written = [record(file, against, proofs, folder=run, student=student)]
    if file.parent.resolve() != run.resolve():
        written.append(record(file, against, proofs))
    card = run / "model" / "README.md"
    if card.is_file():
        text = with_engines(card.read_text(encoding="utf-8"), records_in(run, student))
        write_atomically(card, text.encode())
        written.append(card)
    if (run / PAGE).is_file():
        written.append(report_stage(run))
    return written


def run_of(path: Path) -> Path | None:
    """The run folder that a checkpoint or an exported file lies in, or None."""
    folder = path.parent
    return folder if (folder / RUN_RECORD).is_file() and (folder / "model" / "config.json").is_file() else None
