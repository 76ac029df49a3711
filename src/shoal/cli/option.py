"""How a verb declares what it takes: ``length: Annotated[int | None, option("N", "Tokens per sample.", "the window")] = None``.

An option is called as its field or parameter is (``fit_tokens`` becomes ``--fit-tokens``). It states its heading in the help
unless it belongs on the first screen, and the value it has where it is not given: from the tables, never by hand.
"""

from collections.abc import Mapping
from typing import Any

import typer


def listed(table: Mapping[str, Any]) -> str:
    """All entries of a table, as a help text lists them: ``none: plain removal; auto: ...``."""
    return "; ".join(f"{name}: {one.about}" for name, one in table.items()) + "."


def argument(metavar: str, about: str, **more: Any) -> Any:
    """What is given by its place; ``more`` as typer takes it, such as a ``callback`` that refuses."""
    return typer.Argument(metavar=metavar, help=about, **more)


def option(metavar: str, about: str, default: object = None, *, under: str | None = None, name: str = "", **more: Any) -> Any:
    """What is given by name, with a value.

    Args:
        default: what holds where it is not given; None where the signature states the value, or it has to be given.
        under: its heading in the help; None: the first screen.
        name: where the parameter is called otherwise.
        more: as typer takes it, such as a ``parser``.
    """
    said = about if default is None else f"{about}  [default: {default}]"
    return typer.Option(*([name] if name else []), metavar=metavar, help=said, rich_help_panel=under, **more)


def flag(name: str, about: str, *, under: str | None = None) -> Any:
    """What is off unless it is given."""
    return typer.Option(name, help=about, rich_help_panel=under)
