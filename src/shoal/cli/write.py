"""The verb ``write``: text of a model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from shoal.cli.groups import PlaceOptions, TextOptions
from shoal.cli.option import flag, option
from shoal.cli.options import JsonOption, LengthOption, ModelOption, SeedOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import given, verb


@verb
def write(
    model: ModelOption,
    text: TextOptions,
    place: PlaceOptions,
    out: Annotated[Path, option("FILE", "New file of JSON lines, to be given to --text.")],
    chats: Annotated[
        bool,
        flag("--chats", "Chats: the model asks, unless --text gives conversations, and answers, by its chat template."),
    ] = False,
    n: Annotated[int, option("N", "Texts to write.", min=1)] = 240,
    temperature: Annotated[float, option("X", "Of sampling; 1: as the model has learned it.")] = 1.0,
    length: LengthOption = None,
    seed: SeedOption = None,
    json: JsonOption = False,
) -> None:
    """Let a model write text of its own to calibrate on: from the first words of a text, or chats with itself."""
    from shoal.cli.console import Screen
    from shoal.run.begin import say_text
    from shoal.run.own_chats import write_own_chats
    from shoal.run.own_text import write_own_text

    screen = Screen(as_json=json)
    chosen = with_options("default", model=model, length=length, seed=seed, **given(text))
    if not chats:
        say_text(chosen, screen.say)
    with screen.progress():
        made = (write_own_chats if chats else write_own_text)(chosen, out, n=n, temperature=temperature, opening=place.spread)
    found = f"{made.n_texts:,} {'chats' if chats else 'texts'} of {made.n_tokens:,} tokens"
    missing = f", {n - made.n_texts:,} fewer than asked for" * (chats and made.n_texts < n)
    screen.say(f"{found}{missing}: {made.path}; give it to --text")
    screen.result(made.model_dump(mode="json"))
