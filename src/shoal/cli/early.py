"""What is wrong with a name or a number is said at once: torch and transformers, which take seconds to import, come later."""

from typing import Any

from shoal.cli.option import argument
from shoal.engine.gguf_head import read_head
from shoal.engine.source import check_source, local_place
from shoal.engine.workers import join
from shoal.text.mixture import parse_mixture
from shoal.text.sources import refuse_missing

OF_MODELS = ("config.json", "run.json", "model")
"""A folder of a model or of a run has one of them, or a GGUF file."""


def model_argument(metavar: str, about: str) -> Any:
    """One or several models, given by their place."""
    return argument(metavar, about, callback=named_models)


def named_models(given: str | list[str] | None) -> str | list[str] | None:
    """Models as they are named.

    Raises:
        ValueError: neither a folder nor a GGUF file nor like a hub id; a folder that holds neither a model nor a run; a file
            that is GGUF by its name alone.
    """
    for one in [given] if isinstance(given, str) else given or ():
        place = local_place(one)
        if place is not None and place.is_file():
            read_head(place)
        elif place is not None and not any((place / name).exists() for name in OF_MODELS) and not any(place.glob("*.gguf")):
            check_source(place, trust_remote_code=False)  # The folder has no config, so no code of it can be meant.
    return given


def named_texts(given: list[str] | None) -> list[str] | None:
    """Texts as they are named. Raises ValueError for a mixture that cannot be read and a file that is not there."""
    if given and join().is_first:  # The other processes of a job read no text, and may run on machines that have none.
        for part in parse_mixture(given).parts:
            for source in part.sources:
                refuse_missing(source)
    return given
