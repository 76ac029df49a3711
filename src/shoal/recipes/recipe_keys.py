"""The keys of a recipe file for people: docs/recipe_keys.md, written from the records and their docstrings."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic_core import PydanticUndefined

from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import recipe_without_keys
from shoal.words.records import Record

HEAD = """# The keys of a recipe file

A recipe file states what differs from the recipe `default`, or from another one that it names (`recipe: uidl`). Every key
is listed here with the value it has when it is left out. How methods are put together is in [recipes](recipes.md). A key that
nothing reads beside the others (`heal: {method: full, rank: 8}`) is an error.

A single text may be given as `text: mine.jsonl`, several as `text: [a.txt, b.txt]`; layers as `protect: 0,1,-1` or as
`protect: [0, 1, -1]`; pruning and healing as on the command line, `prune: wanda:pattern=2:4` and `heal: lora`."""


def keys_page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path, kind in sections(Recipe):
        title = f"## `{path}:`" if path else "## At the top"
        parts.append(f"{title}\n\n{as_table(kind)}")
    return "\n\n".join(parts) + "\n"


def sections(kind: type[Record], path: str = "") -> Iterator[tuple[str, type[Record]]]:
    """A record and every record below it, depth first, with the keys that lead there."""
    yield path, kind
    for name, field in kind.model_fields.items():
        below = record_of(field.annotation)
        if below is not None:
            yield from sections(below, f"{path}.{name}" if path else name)


def record_of(annotation: Any) -> type[Record] | None:
    """The record inside a type such as ``X | None`` or ``tuple[X, ...]``; None where there is none."""
    if inspect.isclass(annotation) and issubclass(annotation, Record):
        return annotation
    return next(filter(None, map(record_of, get_args(annotation))), None)


def as_table(kind: type[Record]) -> str:
    """A row per entry of the docstring, in its order."""
    rows = ["| key | when left out | |", "|---|---|---|"]
    for names, text in described(kind):
        defaults = ", ".join(f"`{default_said(kind, name)}`" for name in names)
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {defaults} | {text} |")
    return "\n".join(rows)


def described(kind: type[Record]) -> list[tuple[tuple[str, ...], str]]:
    """The entries of the docstring's attributes: the fields that an entry is about, and what it says of them."""
    text = inspect.cleandoc(kind.__doc__ or "").split("Attributes:", 1)[-1]
    found: list[tuple[tuple[str, ...], str]] = []
    for entry in re.split(r"\n    (?=\w)", text)[1:]:
        heads, _, said = entry.partition(": ")
        said = " ".join(said.split())
        named = [name for name in re.findall(r"``(\w+)``:", said) if name in kind.model_fields]
        said = re.sub(r":\w+:`~?[\w.]*?(\w+)`", r"`\1`", said).replace("``", "`").replace("None:", "null:").replace("|", "\\|")
        said = re.sub(r"an entry of `[\w.]+`", "one of [these names](names.md)", said)
        found.append((tuple(dict.fromkeys([*heads.split(", "), *named])), said))
    return found


def default_said(kind: type[Record], name: str) -> str:
    """The value of a field that is left out, as YAML; ``...`` for a record, whose own fields have theirs."""
    field = kind.model_fields[name]
    value = field.get_default(call_default_factory=True) if kind is not Recipe else getattr(recipe_without_keys(), name)
    if value is PydanticUndefined or isinstance(value, Record):
        return "..."
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
