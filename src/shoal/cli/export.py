"""The verb ``export``: a student in the format of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from shoal.cli.console import Screen
from shoal.cli.options import JsonOption
from shoal.export.table import EXPORTERS


def export(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(EXPORTERS)}.")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Run folder, or the folder of a checkpoint.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="File or folder to write; formats that are a line of text print it without."),
    ] = None,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--like", metavar="TEACHER.gguf", help="gguf: keep this file's tokenizer and untouched tensors."),
    ] = None,
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--type", help="gguf: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0.  [default: f16; q8_0 with --like]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file at --out.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a student in the format of an engine, and check what was written."""
    from shoal.export.contract import Options
    from shoal.export.table import export as written

    screen = Screen(as_json=json)
    done = written(format, student, out, Options(like=like, kind=kind, overwrite=overwrite))
    screen.say(done.text.rstrip("\n") if done.path is None else f"{format}:  {done.path}\n{done.text.rstrip()}")
    for note in done.notes:
        screen.say(f"note:  {note}")
    path = None if done.path is None else str(done.path)
    screen.result({"format": format, "path": path, "text": done.text, "notes": list(done.notes), "checked": done.checked})
