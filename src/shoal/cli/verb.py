"""Verbs with option groups: a verb names groups of options, the parser sees each option.

A group is a frozen dataclass whose fields are options (``Annotated[type, option(...)] = default``) or other groups.
A verb takes groups as parameters like any others::

    @verb
    def scan(model: ModelOption, text: TextOptions, machine: MachineOptions) -> None: ...

What is marked, ``Annotated[TextOptions, OF_THE_RECIPE]``, holds as a recipe says it where it is not given; its help says so.

:func:`verb` gives it the flat signature that typer reads, and hands the parsed options over as groups.
"""

import copy
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from shoal.words.reading import at_home

OF_THE_RECIPE = "of the recipe"
"""Marks a group of options, or an option, that a recipe may state: its own default holds where the recipe does not."""


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """The function with its groups spread out into their options.

    Raises:
        TypeError: two options of one name. Our own bug, seen on import.
    """
    hints = get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters
    flat: list[inspect.Parameter] = []
    for name, parameter in own.items():
        group, is_of_recipe = _group_of(hints[name])
        found = [_option(name, hints[name], parameter.default)] if group is None else _options(group)
        flat += [_of_recipe(one) for one in found] if is_of_recipe else found
    doubled = {one.name for one in flat if sum(one.name == other.name for other in flat) > 1}
    if doubled:
        raise TypeError(f"{function.__name__} has two options of one name: {', '.join(sorted(doubled))}")

    def called(**parsed: Any) -> None:
        given = {name: _at_home(value) for name, value in parsed.items()}
        groups = {name: _group_of(hints[name])[0] for name in own}
        function(**{name: given[name] if group is None else _group(group, given) for name, group in groups.items()})

    called.__name__, called.__doc__, called.__module__ = function.__name__, function.__doc__, function.__module__
    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]  # what inspect and typer read
    called.__annotations__ = {one.name: one.annotation for one in flat}
    return called


def given(*groups: Any) -> dict[str, Any]:
    """The options of groups by name, those of groups within them, too."""
    return dict(pair for group in groups for pair in _values(group))


def command_line() -> str:
    """The command as it was typed, for the records of a run."""
    return shlex.join(["shoal", *sys.argv[1:]])


def _values(group: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(group):
        value = getattr(group, field.name)
        yield from _values(value) if is_dataclass(value) else ((field.name, value),)


def _at_home(value: Any) -> Any:
    """A path, or each of several, with its ``~`` as the folder it stands for; anything else as it is."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    return at_home(value) if isinstance(value, Path) else value


def _group_of(hint: Any) -> tuple[Any | None, bool]:
    """The group that a parameter is, or None where it is an option; and whether it is marked as the recipe's."""
    marked = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    return marked[0] if is_dataclass(marked[0]) else None, OF_THE_RECIPE in marked[1:]


def _of_recipe(one: inspect.Parameter) -> inspect.Parameter:
    """An option whose help says that the recipe's value holds, and what holds where the recipe states none."""
    kind, *marks = get_args(one.annotation)
    marks = [copy.copy(mark) for mark in marks if mark is not OF_THE_RECIPE]
    for mark in marks:
        mark.help = mark.help.replace("[default: ", "[default: the recipe's, else ")
    return one.replace(annotation=Annotated[(kind, *marks)])


def _options(group: Any) -> list[inspect.Parameter]:
    """The options of a group as parameters, in the order in which they are written."""
    hints = get_type_hints(group, include_extras=True)
    found: list[inspect.Parameter] = []
    for field in fields(group):
        hint = hints[field.name]
        found += _options(hint) if is_dataclass(hint) else [_option(field.name, hint, field.default)]
    return found


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _group(kind: Any, given: dict[str, Any]) -> Any:
    """One group filled with what was parsed."""
    hints = get_type_hints(kind)
    filled = {
        field.name: _group(hints[field.name], given) if is_dataclass(hints[field.name]) else given[field.name]
        for field in fields(kind)
    }
    return kind(**filled)
