"""The verb ``cut``: layers out of a GGUF file, still quantised."""

import shlex
from pathlib import Path
from typing import Annotated

from shoal.cli.console import Screen, steps_said
from shoal.cli.option import argument, flag, option
from shoal.cli.options import JsonOption, KeepOption
from shoal.cli.verb import verb
from shoal.words.reading import refuse_other_than_plan
from shoal.words.types import Unit
from shoal.words.unit_names import removed_by_hand


@verb
def cut(
    file: Annotated[Path, argument("FILE.gguf", "GGUF file, or the first part of a split one; it is not changed.")],
    out: Annotated[Path, option("FILE", "GGUF file to write.")],
    layers: Annotated[
        str | None, option("LIST", "Layers to remove, 0-based and inclusive: 20..24, or 3,7,20..24.", "none")
    ] = None,
    keep: KeepOption = None,
    plan: Annotated[
        Path | None, option("FILE", "plan.json whose layers are removed; it may only remove whole layers.", "none")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace --out where it exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Cut layers out of a GGUF file: file to file, still quantised, whatever its size.

    Kept tensors stay byte for byte. Values of a repaired student go into a file with `shoal export gguf STUDENT --like FILE`.
    """
    from shoal.edits.plan import Plan
    from shoal.export.gguf.cut_file import cut_gguf, layers_of_plan
    from shoal.export.gguf.file_parts import open_model

    if [layers, keep, plan].count(None) != 2:
        raise ValueError(
            "say what to remove: either --layers 20..24, --keep 0..19 or --plan plan.json "
            f"(`shoal plan {shlex.quote(str(file))} --drop 25% --out DIR` measures which layers and writes one)"
        )
    screen = Screen(as_json=json)
    with screen.working("look at the file"):
        n_layers = open_model(file).n_layers
    if plan is not None:
        refuse_other_than_plan(plan, "shoal plan writes one")
        kept = layers_of_plan(Plan.load(plan), n_layers, str(file))
    else:
        gone = removed_by_hand(layers, keep, n_layers)
        if any(unit.kind != "layer" for unit in gone):
            raise ValueError(f"--layers {layers} names single sublayers, and a GGUF file is cut by whole layers; name layers")
        kept = tuple(layer for layer in range(n_layers) if Unit("layer", layer) not in gone)
    with screen.working("write the file"):
        done = cut_gguf(file, kept, out, overwrite=overwrite)
    screen.say(f"cut:        {done}")
    screen.say(f"file:       {done.path}")
    notes = [*done.notes, *([] if plan is None else _left_out(plan, file))]
    for note in notes:
        screen.say(f"note:       {note}")
    teacher, student = shlex.quote(str(file)), shlex.quote(str(done.path))
    steps = {
        "measure it": f"shoal eval {student} --teacher {teacher}",
        "talk to it": f"llama-cli -m {student}",
        "prove it": f"shoal verify {student} --against {student} --uncut {teacher} --engine llama.cpp",
    }
    for line in steps_said(steps):
        screen.say(line)
    screen.result({**done.to_dict(), "notes": notes})


def _left_out(plan: Path, file: Path) -> list[str]:
    """That the run of a plan did more to its student than to cut it, and how to have that in a file."""
    from shoal.export.found_plan import done_beyond

    done = " and ".join(done_beyond(plan))
    if not done:
        return []
    command = f"shoal export gguf {shlex.quote(str(plan.parent))} --like {shlex.quote(str(file))} --out student.gguf"
    return [f"this is the cut alone; the student of {plan.parent} was {done}: {command}"]
