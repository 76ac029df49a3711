"""The verbs of the command. A new verb is one file beside this one and one line in the table.

torch and transformers are imported inside the verbs, so that ``--help`` answers at once.
"""

from typing import Annotated

import typer

from shoal import __version__
from shoal.cli.analyse import analyse
from shoal.cli.apply import apply
from shoal.cli.compare import compare
from shoal.cli.compress import compress
from shoal.cli.curve import curve
from shoal.cli.cut import cut
from shoal.cli.demo import demo
from shoal.cli.eval import evaluate
from shoal.cli.export import export
from shoal.cli.grow import grow
from shoal.cli.heal import heal
from shoal.cli.help import parser
from shoal.cli.plan import plan
from shoal.cli.prune import prune
from shoal.cli.report import report
from shoal.cli.run import run
from shoal.cli.scan import scan
from shoal.cli.stability import stability
from shoal.cli.verify import verify
from shoal.cli.write import write
from shoal.engine.workers import join

FIRST = {
    "compress": compress,
    "demo": demo,
    "scan": scan,
    "eval": evaluate,
    "heal": heal,
    "export": export,
}
"""What a first day asks for: the whole job in one command, a try of it without a model of one's own, a look before the cut,
a measurement of any model, more quality afterwards, and the file for the engine that serves it."""

OTHERS = {
    "plan": plan,
    "apply": apply,
    "run": run,
    "compare": compare,
    "curve": curve,
    "stability": stability,
    "write": write,
    "cut": cut,
    "verify": verify,
    "report": report,
    "prune": prune,
    "grow": grow,
    "analyse": analyse,
}
"""The steps of ``compress`` one by one, studies, and work on files."""

SHARED = ("compress", "eval", "grow", "heal", "plan", "prune", "run", "scan")
"""Verbs whose work several processes can share."""

RESUMED = ("analyse", "compress", "curve", "demo", "grow", "heal", "plan", "prune", "run", "scan", "write")
"""Verbs that keep what they have finished in a folder, and go on from there."""


def version(wanted: bool) -> None:
    """Print the version and stop, when asked to."""
    if wanted:
        print(__version__)
        raise typer.Exit


def shoal(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make deep language models shallower: measure layers, remove the idle ones, repair the cut, measure the loss."""
    n_processes = join().size
    if n_processes > 1 and context.invoked_subcommand not in SHARED:
        raise ValueError(
            f"{context.invoked_subcommand} runs in one process, not in {n_processes}; {', '.join(SHARED)} share work"
        )


app = parser(first=FIRST, others=OTHERS, callback=shoal)
