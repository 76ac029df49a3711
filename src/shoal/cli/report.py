"""The verb ``report``."""

from pathlib import Path
from typing import Annotated

from shoal.cli.console import Screen
from shoal.cli.option import argument, flag, option
from shoal.cli.options import JsonOption
from shoal.cli.verb import verb
from shoal.words.reading import refuse_other_than_run


@verb
def report(
    folder: Annotated[Path, argument("DIR", "Folder of compress, run, curve, scan or plan; may be unfinished.")],
    out: Annotated[Path | None, option("FILE", "HTML file.", "DIR/report.html")] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace --out even where it is no report.")] = False,
    json: JsonOption = False,
) -> None:
    """Make one self-contained HTML page of a run or of curves, and its charts as SVG and PNG."""
    refuse_other_than_run(folder)

    from shoal.run.stages.report import FIGURES, write_report

    screen = Screen(as_json=json)
    with screen.working("draw the report"):
        page, figures = write_report(folder, out, overwrite=overwrite)
    screen.say(f"report:     {page}")
    if figures:
        screen.say(f"charts:     {page.parent / FIGURES}, {len(figures)} files")
    else:
        screen.say("charts:     not drawn; pip install 'shoal[plot]'")
    screen.result({"report": str(page), "figures": [str(path) for path in figures]})
