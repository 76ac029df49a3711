"""The verb ``export``: a student in the format of an engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from shoal.cli.console import Screen
from shoal.cli.option import argument, flag, option
from shoal.cli.options import JsonOption, RemoteOption
from shoal.cli.verb import verb
from shoal.export.table import EXPORTERS


@dataclass(frozen=True)
class PushOptions:
    """Where what was written is uploaded to, and who may see it there."""

    push: Annotated[
        str | None,
        option("OWNER/NAME", "Upload what was written, with the card, to a new repository.", "none, nothing is sent"),
    ] = None
    public: Annotated[bool, flag("--public", "With --push: for everybody, not private.")] = False
    dry_run: Annotated[bool, flag("--dry-run", "With --push: say what would be uploaded, send nothing.")] = False

    def check(self, out: Path | None) -> None:
        """Raises ValueError, before anything is written, for what cannot be pushed."""
        from shoal.export.push import check_name

        if self.push is None:
            if self.public or self.dry_run:
                raise ValueError("--public and --dry-run belong to --push OWNER/NAME")
            return
        check_name(self.push)
        if out is None:
            raise ValueError("--push needs a file or folder: give --out, where to write it")


@verb
def export(
    format: Annotated[str, argument("FORMAT", f"One of {', '.join(EXPORTERS)}.")],
    student: Annotated[Path, argument("STUDENT", "Run folder, or the folder of a checkpoint.")],
    *,
    out: Annotated[
        Path | None, option("PATH", "File or folder to write.", "none; formats that are a line of text print it")
    ] = None,
    like: Annotated[
        Path | None, option("TEACHER.gguf", "gguf: keep this file's tokenizer and untouched tensors.", "none")
    ] = None,
    kind: Annotated[
        str | None,
        option(
            "NAME",
            "gguf: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; plain: f32, f16, bf16.",
            "f16; q8_0 with --like; plain: the dtype that config.json states",
            name="--type",
        ),
    ] = None,
    overwrite: Annotated[
        bool, flag("--overwrite", "Replace a file at --out; with --push, add to a repository that exists.")
    ] = False,
    push: PushOptions,
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Write a student in the format of an engine, and check what was written."""
    from shoal.export.exporter import Options, find_student
    from shoal.export.table import export as written

    push.check(out)
    screen = Screen(as_json=json)
    with screen.working(f"write and check {format}"):
        options = Options(like=like, kind=kind, overwrite=overwrite)
        done = written(format, student, out, options, trust_remote_code=trust_remote_code)
    screen.say(done.text.rstrip("\n") if done.path is None else f"{format}:  {done.path}\n{done.text.rstrip()}")
    for note in done.notes:
        screen.say(f"note:  {note}")
    path = None if done.path is None else str(done.path)
    result = {"format": format, "path": path, "text": done.text, "notes": list(done.notes), "checked": done.checked}
    if push.push is not None:
        card = find_student(student).folder / "README.md"
        result["push"] = _pushed(screen, done.path, push.push, card, push.public, push.dry_run, overwrite)
    screen.result(result)


def _pushed(
    screen: Screen, path: Path | None, name: str, card: Path, public: bool, dry_run: bool, overwrite: bool
) -> dict[str, object]:
    """Upload a file or folder, or say what would be; for JSON."""
    from shoal.export.push import planned, push

    assert path is not None
    plan = planned(path, name, card=card, public=public)
    for file, where in plan.files:
        screen.say(f"  {file}  {where.stat().st_size:,} bytes")
    if dry_run:
        screen.say(f"push:  would send {plan}; nothing was sent")
        return {"name": name, "files": [file for file, _ in plan.files], "sent": False}
    with screen.working(f"upload {name}"):
        address = push(plan, overwrite=overwrite)
    screen.say(f"push:  {plan}: {address}")
    return {"name": name, "files": [file for file, _ in plan.files], "sent": True, "address": address}
