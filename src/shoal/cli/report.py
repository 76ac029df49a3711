"""The verb ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from shoal.cli.options import Json, Overwrite
from shoal.cli.verbs import _screen, app


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Run folder of compress, run, scan or plan; may be unfinished.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="HTML file.  [default: DIR/report.html]")] = None,  # noqa: UP045
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make one self-contained HTML page of a run folder, and its charts as SVG and PNG."""
    from shoal.run.report import FIGURES, write_report

    screen = _screen(json)
    page = write_report(folder, out, overwrite=overwrite)
    figures = sorted((page.parent / FIGURES).glob("*.svg"))
    screen.say(f"report:     {page}")
    screen.say(f"charts:     {page.parent / FIGURES} ({len(figures)}, as .svg and .png)" if figures else "charts:     not drawn; pip install 'shoal[plot]'")
    screen.result({"report": str(page), "figures": [str(path) for path in figures]})
