"""What is wrong with a name or a number is said at once: torch and transformers, which take seconds to import, come later."""

from typing import Any

from shoal.cli.option import argument
from shoal.engine.source import local_place
from shoal.engine.workers import join
from shoal.text.mixture import parse_mixture
from shoal.text.sources import refuse_missing


def model_argument(metavar: str, about: str) -> Any:
    """One or several models, given by their place."""
    return argument(metavar, about, callback=named_models)


def named_models(given: str | list[str] | None) -> str | list[str] | None:
    """Models as they are named. Raises ValueError for one that is neither a folder nor a GGUF file nor like a hub id."""
    for one in [given] if isinstance(given, str) else given or ():
        local_place(one)
    return given


def named_texts(given: list[str] | None) -> list[str] | None:
    """Texts as they are named. Raises ValueError for a mixture that cannot be read and a file that is not there."""
    if given and join().is_first:  # The other processes of a job read no text, and may run on machines that have none.
        for part in parse_mixture(given).parts:
            for source in part.sources:
                refuse_missing(source)
    return given
