"""Verbs with option groups: a verb names groups of options, the parser sees each option.

A group is a frozen dataclass whose fields are options (``Annotated[type, option(...)] = default``) or other groups.
A verb takes groups as parameters like any others::

    @verb
    def scan(model: ModelOption, text: TextOptions, machine: MachineOptions) -> None: ...

:func:`verb` gives it the flat signature that typer reads, and hands the parsed options over as groups.
"""

import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """The function with its groups spread out into their options.

    Raises:
        TypeError: two options of one name. Our own bug, seen on import.
    """
    hints = get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters
    flat: list[inspect.Parameter] = []
    for name, parameter in own.items():
        flat += _options(hints[name]) if is_dataclass(hints[name]) else [_option(name, hints[name], parameter.default)]
    doubled = {one.name for one in flat if sum(one.name == other.name for other in flat) > 1}
    if doubled:
        raise TypeError(f"{function.__name__} has two options of one name: {', '.join(sorted(doubled))}")

    def called(**given: Any) -> None:
        function(**{name: _group(hints[name], given) if is_dataclass(hints[name]) else given[name] for name in own})

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
