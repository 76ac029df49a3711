"""The verbs of the command, and the parser made of them. A new verb is one file beside this one and one line in the table.

torch and transformers are imported inside the verbs, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from shoal import __version__
from shoal.cli.apply import apply
from shoal.cli.compare import compare
from shoal.cli.compress import compress
from shoal.cli.curve import sweep
from shoal.cli.cut import cut
from shoal.cli.demo import demo
from shoal.cli.eval import evaluate
from shoal.cli.export import export
from shoal.cli.heal import heal
from shoal.cli.plan import plan
from shoal.cli.report import report
from shoal.cli.run import run
from shoal.cli.scan import scan
from shoal.cli.stability import stability
from shoal.cli.verify import verify
from shoal.cli.write import write
from shoal.engine.workers import join

VERBS = {
    "compress": compress,
    "run": run,
    "demo": demo,
    "scan": scan,
    "plan": plan,
    "apply": apply,
    "eval": evaluate,
    "compare": compare,
    "stability": stability,
    "cut": cut,
    "export": export,
    "verify": verify,
    "write": write,
    "sweep": sweep,
    "report": report,
    "heal": heal,
}
"""By name, in the order of the help."""

SHARED = ("compress", "eval", "heal", "plan", "run", "scan")
"""Verbs whose work several processes can share."""

app = typer.Typer(
    name="shoal",
    help="Make deep language models shallower: measure layers, remove the idle ones, repair the cut, measure the loss.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, function in VERBS.items():
    app.command(name)(function)


def version(wanted: bool) -> None:
    """Print the version and stop, when asked to."""
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def shoal(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make deep language models shallower."""
    n_processes = join().size
    if n_processes > 1 and context.invoked_subcommand not in SHARED:
        raise ValueError(
            f"{context.invoked_subcommand} runs in one process, not in {n_processes}; {', '.join(SHARED)} share work"
        )
