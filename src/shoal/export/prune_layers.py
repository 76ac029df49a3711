"""The format ``prune-layers``: the list of removed layers as ``llama-quantize --prune-layers`` takes it."""

from pathlib import Path
from typing import Any

from shoal.export.exporter import TRAINED, UNPLANNED, Exported, Exporter, Options, StudentFolder, cut_alone


def refuses(student: StudentFolder, options: Options) -> str | None:
    if student.plan is None:
        return UNPLANNED
    if student.is_trained:
        return TRAINED + cut_alone(student)
    if not student.plan.is_pure_removal or list(student.plan.kept_layers) != sorted(set(student.plan.kept_layers)):
        return f"it is more than a removal of whole layers, which is all that --prune-layers does{cut_alone(student)}"
    if not student.plan.removed_layers:
        return "it has every layer of its teacher"
    return None


def write(student: StudentFolder, out: Path | None, options: Options) -> Exported:
    from shoal.words.records import write_atomically

    assert student.plan is not None
    text = ",".join(map(str, student.plan.removed_layers))
    if out is not None:
        if out.exists() and not options.overwrite:
            raise ValueError(f"{out} exists; give another name, or --overwrite")
        write_atomically(out, f"{text}\n".encode())
    notes = (
        f"llama-quantize --prune-layers {text} TEACHER.gguf STUDENT.gguf COPY",
        "llama-quantize leaves lists per layer and sliding windows as they were; shoal cut sets them right",
    )
    return Exported(out, text, notes)


def verify(student: StudentFolder, done: Exported) -> dict[str, Any]:
    """Raises ValueError where the list is not that of the plan."""
    assert student.plan is not None
    removed = [int(part) for part in done.text.split(",")]
    if removed != list(student.plan.removed_layers):
        raise ValueError(f"the list says {removed}, the plan removes {list(student.plan.removed_layers)}")
    return {"removed": len(removed)}


PRUNE_LAYERS = Exporter(
    name="prune-layers",
    about="the removed layers as llama-quantize --prune-layers takes them; pure removal only",
    refuses=refuses,
    write=write,
    verify=verify,
    needs_target=False,
)
