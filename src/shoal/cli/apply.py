"""The verb ``apply``."""

import shlex
from pathlib import Path
from typing import Annotated

from shoal.cli.option import argument, option
from shoal.cli.options import DeviceOption, JsonOption, KeepOption, LayersOption, RemoteOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import verb
from shoal.words.reading import refuse_other_than_plan


@verb
def apply(
    plan: Annotated[
        Path,
        argument(
            "PLAN|MODEL", "plan.json, or fitted.json with its repair (values lie beside it); with --layers or --keep a model."
        ),
    ],
    out: Annotated[Path, option("DIR", "New folder for the checkpoint.")],
    layers: LayersOption = None,
    keep: KeepOption = None,
    model: Annotated[
        str | None, option("MODEL", "Where the source model is now, when it has moved.", "as the plan names it")
    ] = None,
    device: DeviceOption = "cpu",
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Apply a plan to its source, or take out layers by number.

    Plain removal goes file to file: any size, quantised too, the model is not opened.
    """
    by_hand = layers is not None or keep is not None
    if by_hand and model is not None:
        raise ValueError("--model says where the source of a plan is; with --layers or --keep name it in place of the plan")
    if layers is not None and layers.strip() == "none":
        raise ValueError("--layers none keeps all layers, so nothing is removed; name what goes")
    if not by_hand:
        refuse_other_than_plan(plan, "shoal plan writes one")
    chosen = with_options("default", model=str(plan), layers=layers, keep=keep) if by_hand else None

    from shoal.cli.console import Screen, steps_said
    from shoal.cli.groups import PlaceOptions
    from shoal.cli.show import say_beside
    from shoal.run.apply import apply_named, apply_plan
    from shoal.run.folder import CHOSEN
    from shoal.run.stages.fit import FITTED

    screen, opening = Screen(as_json=json), PlaceOptions(device=device, trust_remote_code=trust_remote_code).opening
    with screen.working("write and check the checkpoint"):
        made = apply_plan(plan, out, opening, model=model) if chosen is None else apply_named(chosen, out, opening)
    say_beside(screen, made.beside)
    screen.say(f"{made.plan}\ncheckpoint: {out}")
    if plan.name == CHOSEN and (plan.parent / FITTED).exists():
        screen.say(f"this is the cut as it was chosen; {plan.parent / FITTED} is the same plan with its repair")
    student, teacher = shlex.quote(str(out)), shlex.quote(model or made.plan.source)
    for line in steps_said({"measure it": f"shoal eval {student} --teacher {teacher}"}):
        screen.say(line)
    screen.result({"model": str(out), "layers": made.plan.after.layers, "verification": made.verification})
