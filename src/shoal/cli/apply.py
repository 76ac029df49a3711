"""The verb ``apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.options import DeviceOption, JsonOption, RemoteOption
from shoal.cli.show import say_beside
from shoal.cli.verb import verb


@verb
def apply(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="plan.json, or fitted.json with its repair; values lie beside it.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint.")],
    model: Annotated[str | None, typer.Option("--model", help="Where the source model is now, when it has moved.")] = None,
    device: DeviceOption = "cpu",
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Apply a plan to its source. Plain removal goes file to file: any size, quantised too, the model is not opened."""
    from shoal.cli.console import Screen
    from shoal.run.apply import apply_plan
    from shoal.run.run_files import CHOSEN
    from shoal.run.stages.fit import FITTED

    screen = Screen(as_json=json)
    made = apply_plan(plan, out, model=model, device=device, trust_remote_code=trust_remote_code)
    say_beside(screen, made.beside)
    screen.say(f"{made.plan}\ncheckpoint: {out}")
    if plan.name == CHOSEN and (plan.parent / FITTED).exists():
        screen.say(f"this is the cut as it was chosen; {plan.parent / FITTED} is the same plan with its repair")
    screen.result({"model": str(out), "layers": made.plan.after.layers, "verification": made.verification})
