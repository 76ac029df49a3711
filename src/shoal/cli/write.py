"""The verb ``write``: text of a model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.options import (
    DeviceOption,
    DtypeOption,
    FieldOption,
    JsonOption,
    LengthOption,
    ModelOption,
    RemoteOption,
    SeedOption,
    TextOption,
    with_options,
)
from shoal.cli.show import say_text


def write(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="New file of JSON lines, to be given to --text.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Texts to write.")] = 240,
    temperature: Annotated[float, typer.Option("--temperature", help="Of sampling; 1: as the model has learned it.")] = 1.0,
    text: TextOption = None,
    field: FieldOption = None,
    length: LengthOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Let a model write text of its own from the first words of a text, to calibrate on."""
    from shoal.cli.console import Screen
    from shoal.run.own_text import write_own_text

    screen = Screen(as_json=json)
    chosen = with_options("default", model=model, text=text, field=field, length=length, seed=seed)
    say_text(screen, chosen)
    with screen.progress():
        made = write_own_text(
            chosen,
            out,
            n=n,
            temperature=temperature,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            progress=screen.step,
        )
    screen.say(f"{made.n_texts:,} texts of {made.n_tokens:,} tokens: {made.path}; give it to --text")
    screen.result(made.model_dump(mode="json"))
