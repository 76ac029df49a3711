"""The format ``gguf``: grafted onto the teacher's file, or written from the checkpoint alone."""

from pathlib import Path
from typing import Any

from shoal.checkpoint.config_fields import count_layers
from shoal.export.exporter import Exported, Exporter, Options, StudentFolder, source_layers
from shoal.export.gguf.blocks import KINDS
from shoal.export.gguf.convert import convert, why_not
from shoal.export.gguf.file_parts import open_model
from shoal.export.gguf.graft import Source, graft
from shoal.export.gguf.layers import lists_windows
from shoal.export.gguf.stored_weights import StoredWeights
from shoal.words.reading import at_home

WINDOWS = "its sliding windows are listed layer by layer: llama.cpp reads that from build b11434 (October 2026) on"

IMAGES = "this is the text decoder; images go in through the teacher's mmproj file, which no cut changes"

LEAST_LEFT = 0.5


def refuses(student: StudentFolder, options: Options) -> str | None:
    if options.kind is not None and options.kind not in KINDS:
        return f"--type {options.kind!r} cannot be written, known: {', '.join(KINDS)}; llama-quantize makes the others of f16"
    if options.like is None or student.code is not None:
        return student.code or why_not(student.config)
    return None


def write(student: StudentFolder, out: Path | None, options: Options) -> Exported:
    assert out is not None
    if options.like is not None:
        return _grafted(student, out, options.like, options)
    kind = options.kind or "f16"
    kept = [slot.like for slot in student.structure or ()]
    name, config = student.name, student.config
    notes = convert(student.folder, config, out, name=name, kept=kept, kind=kind, overwrite=options.overwrite)
    written = open_model(out)
    if lists_windows(written.keys, written.architecture):
        notes = (*notes, WINDOWS)
    return Exported(out, f"{len(written.tensors)} tensors, matrices in {kind}", notes)


def _grafted(student: StudentFolder, out: Path, like: Path, options: Options) -> Exported:
    model = open_model(like)
    order = source_layers(student, count_layers(student.config), model.n_layers, str(like))
    weights = StoredWeights(student.folder)
    done = graft(
        model, weights, order, out, source=_source(student, order), kind=options.kind or "q8_0", overwrite=options.overwrite
    )
    written = open_model(out)
    kind = options.kind or "q8_0"
    notes = (WINDOWS,) if lists_windows(written.keys, model.architecture) else ()
    if "vision_config" in student.config:
        notes = (*notes, IMAGES)
    if done.left < LEAST_LEFT:
        lost = f"written in {kind} the middle one of the new matrices keeps {done.left:.0%} of what changed it"
        more = "f16" if kind == "q8_0" else "q8_0"
        notes = (*notes, f"{lost}, the rest goes back to the steps of {like.name}: --type {more} keeps it")
    text = f"{done.n_kept} tensors of {like.name} byte for byte, {done.n_new} of the student in {kind} (vectors in f32)"
    checked = {"kept": done.n_kept, "new": done.n_new, "layouts": done.layouts, "left": done.left}
    return Exported(out, text, notes, checked)


def _source(student: StudentFolder, order: list[int]) -> Source | None:
    """The checkpoint the student was cut from, where it lies on this machine and still is the same."""
    from shoal.engine.source import fingerprint, resolve_source

    if student.plan is None or not at_home(Path(student.plan.source)).exists():
        return None
    folder = resolve_source(student.plan.source)
    if fingerprint(folder) != student.plan.source_hash:
        return None
    return Source(StoredWeights(folder), order)


def verify(student: StudentFolder, done: Exported) -> dict[str, Any]:
    """Heads read back, and names and numbers compared with the student; the values are the business of ``shoal verify``.

    Raises:
        ValueError: the file is not of this student.
    """
    assert done.path is not None
    model = open_model(done.path)
    n = count_layers(student.config)
    if model.n_layers != n:
        raise ValueError(f"{done.path} has {model.n_layers} layers, the student {n}")
    return {"layers": n, "tensors": len(model.tensors), "bytes": done.path.stat().st_size, **done.checked}


GGUF = Exporter(
    name="gguf",
    about="one file for llama.cpp and what is built on it; --like TEACHER.gguf keeps that file's blocks and tokenizer",
    refuses=refuses,
    write=write,
    verify=verify,
    extra="gguf",
    takes=frozenset({"like", "kind"}),
)
