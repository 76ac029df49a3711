"""The formats by name. A new one is one file and one line here; the command, its help and the tests read this table."""

from dataclasses import replace
from pathlib import Path

from shoal.export.blocks import BLOCKS
from shoal.export.checked_place import checked_place
from shoal.export.engines.table import ENGINES
from shoal.export.exporter import Exported, Exporter, Options, StudentFolder, find_student
from shoal.export.gguf_exporter import GGUF
from shoal.export.hf import HF
from shoal.export.mergekit import MERGEKIT
from shoal.export.plain import PLAIN
from shoal.export.prune_layers import PRUNE_LAYERS
from shoal.words.entries import Entries, by_name

EXPORTERS: Entries[Exporter] = by_name(
    "format",
    HF,
    GGUF,
    BLOCKS,
    PLAIN,
    MERGEKIT,
    PRUNE_LAYERS,
)


def export(name: str, student: Path, out: Path | None, options: Options, *, trust_remote_code: bool = False) -> Exported:
    """Write a student in a format and check what was written.

    Args:
        trust_remote_code: code that comes with the student may run.
    Raises:
        ValueError: an unknown format, an option it has no use for, a student it refuses, a check that failed.
        ImportError: the extra it needs is not installed.
    """
    if name not in EXPORTERS and name in ENGINES:
        formats = " or ".join(form for form, kind in (("hf", "folder"), ("gguf", "file")) if kind in ENGINES[name].reads)
        raise ValueError(f"{name} is an engine; the format that it reads is {formats}: shoal export {formats.split()[0]} ...")
    one = EXPORTERS.named(name)
    given = {field for field in ("like", "kind") if getattr(options, field) is not None}
    for field in sorted(given - one.takes):
        option = {"like": "--like", "kind": "--type"}[field]
        users = ", ".join(other.name for other in EXPORTERS.values() if field in other.takes)
        raise ValueError(f"{option} has no meaning for the format {name}; it belongs to {users}")
    if out is None and one.needs_target:
        raise ValueError(f"the format {name} needs --out, where to write")
    if out is not None and out.is_file() and one.writes_folder(out):
        raise ValueError(f"{out} is a file, and the format {name} writes a folder there; give another name, or remove the file")
    found = find_student(student, trust_remote_code=trust_remote_code)
    refusal = one.refuses(found, options)
    if refusal is not None:
        raise ValueError(f"{student} cannot be exported as {name}: {refusal}")
    if out is None:
        return _checked(one, found, None, options)
    with checked_place(out, overwrite=options.overwrite, outside=found.folder) as place:
        done = _checked(one, found, place, options)
    text, *notes = (said.replace(str(place), str(out)) for said in (done.text, *done.notes))
    return replace(done, path=Path(out), text=text, notes=tuple(notes))


def _checked(one: Exporter, found: StudentFolder, place: Path | None, options: Options) -> Exported:
    """What was written at a place, and what was checked of it."""
    done = one.write(found, place, options)
    return replace(done, checked={**done.checked, **one.verify(found, done)})
