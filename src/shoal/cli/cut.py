"""The verb ``cut``: layers out of a GGUF file, still quantised."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.console import Screen
from shoal.cli.options import JsonOption
from shoal.cli.verb import verb

LAYERS = re.compile(r"^(\d{1,6})(?:\.\.(\d{1,6}))?$")


@verb
def cut(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.gguf", help="GGUF file, or the first part of a split one; it is not changed.")
    ],
    out: Annotated[Path, typer.Option("--out", help="GGUF file to write.")],
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Layers to remove, 0-based and inclusive: 20..24, or 3,7,20..24."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="plan.json whose layers are removed; it may only remove whole layers."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out where it exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Cut layers out of a GGUF file: file to file, still quantised, whatever its size.

    Kept tensors stay byte for byte. Values of a repaired student go into a file with `shoal export gguf STUDENT --like FILE`.
    """
    from shoal.edits.plan import Plan
    from shoal.export.gguf.cut_file import cut_gguf, layers_of_plan
    from shoal.export.gguf.file_parts import open_model

    if (layers is None) == (plan is None):
        raise ValueError("say what to remove: either --layers 20..24 or --plan plan.json")
    screen = Screen(as_json=json)
    n_layers = open_model(file).n_layers
    if plan is not None:
        if not plan.is_file():
            raise ValueError(f"no plan at {plan}; shoal plan writes one")
        kept = layers_of_plan(Plan.load(plan), n_layers, str(file))
    else:
        removed = layers_of(str(layers), n_layers)
        kept = tuple(layer for layer in range(n_layers) if layer not in removed)
    done = cut_gguf(file, kept, out, overwrite=overwrite)
    screen.say(f"cut:        {done}")
    screen.say(f"file:       {done.path}")
    for note in done.notes:
        screen.say(f"note:       {note}")
    screen.result(done.to_dict())


def layers_of(text: str, n_layers: int) -> set[int]:
    """The layers that ``3,7,20..24`` names. Raises ValueError for another form, and for layers the model has not."""
    found: set[int] = set()
    for part in text.split(","):
        named = LAYERS.match(part.strip())
        if named is None:
            raise ValueError(f"--layers {text!r}: {part.strip()!r} is no layer and no range such as 20..24")
        first, last = int(named[1]), int(named[2] or named[1])
        if not first <= last < n_layers:
            raise ValueError(f"--layers {text!r}: {part.strip()!r} is not within 0..{n_layers - 1}, the layers of this file")
        found.update(range(first, last + 1))
    return found
