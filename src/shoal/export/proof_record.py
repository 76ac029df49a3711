"""What engines made of a file, as a record: ``FILE.verification.json`` beside it, and in the run folder of its student."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from shoal.export.agreement import Agreement
from shoal.words.reading import read_json
from shoal.words.records import Record

RECORD = ".verification.json"


class Proof(Record):
    """What one engine made of a file.

    Attributes:
        version: of the engine; None where it was not there.
        found, uncut: agreement of the file with its reference, and of the uncut pair.
        verdict: ``agrees``, ``differs: why``, ``fails: why``, ``not judged: why`` or ``not proved here: how to``.
    """

    engine: str
    verdict: str
    version: str | None = None
    found: Agreement | None = None
    uncut: Agreement | None = None

    @property
    def is_wrong(self) -> bool:
        return self.verdict.startswith(("differs", "fails"))


class ProofRecord(Record):
    """The proofs of one file.

    Attributes:
        file, bytes: name and size of what was proved; of a folder, the size of its weights.
        against: name of what it was compared with.
        student: fingerprint of the run's checkpoint at that time; None for a file that belongs to no run.
        engines: by name, the newest proof of each.
    """

    file: str
    bytes: int
    against: str
    student: str | None = None
    engines: dict[str, Proof]


def stored_bytes(path: Path) -> int:
    """Size of a file, or of the weights of a folder."""
    return path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.glob("*.safetensors"))


def record(
    file: Path, against: Path, proofs: Sequence[Proof], *, folder: Path | None = None, student: str | None = None
) -> Path:
    """Write what was proved; proofs of other engines that are there stay, where they are of the same file.

    Args:
        folder: where to write; None: beside the file.
        student: fingerprint of the checkpoint of the run that ``folder`` is of.
    Returns: the path of the record.
    Raises:
        ValueError: a file of that name is no such record.
    """
    path = (file.parent if folder is None else folder) / (file.name + RECORD)
    size, known = stored_bytes(file), {}
    if path.is_file():
        if not is_record(path):
            raise ValueError(f"{path} is another record, of the checkpoint itself; copy {file} to another name and verify that")
        before = ProofRecord.load(path)
        known = before.engines if before.bytes == size and before.student == student else {}
    known = known | {one.engine: one for one in proofs if one.version is not None}
    ProofRecord(file=file.name, bytes=size, against=against.name, student=student, engines=known).save(path)
    return path


def is_record(path: Path) -> bool:
    """Whether a file is a record of proofs in engines, and not of a checkpoint that was opened again."""
    return "engines" in read_json(path)


def records_in(folder: Path, student: str | None) -> list[ProofRecord]:
    """The records of a run folder that are of its student as it is now, by name."""
    found: Iterable[ProofRecord] = (ProofRecord.load(path) for path in sorted(folder.glob(f"*{RECORD}")) if is_record(path))
    return [one for one in found if one.student == student and _is_same(one, folder / one.file)]


def _is_same(found: ProofRecord, file: Path) -> bool:
    """False for a record of a file of the folder that has another size now; a file that lies elsewhere is not asked."""
    return not file.exists() or stored_bytes(file) == found.bytes
