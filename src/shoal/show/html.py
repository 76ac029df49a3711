"""HTML as values: every string is escaped unless it is :class:`Html`, so what a model wrote stays text.

Names of models, texts and generations come from strangers. There is one way to make markup, :func:`tag`, and it escapes.
"""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any, Union

from shoal.show.clean_text import clean
from shoal.show.table import Column, Table

FOLD_ABOVE = 12
"""Rows of a table to be looked up that are shown at once."""

VOID = frozenset({"meta", "link", "br", "hr", "input"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = Union[str, int, float, None, Iterable["Child"]]  # noqa: UP007  (a type that holds itself, in Python 3.11)
Attribute = str | int | float | bool | None


def escape(text: str) -> Html:
    """Text as markup that shows it; characters that cannot be shown become U+FFFD."""
    return Html(html.escape(clean(text.replace("\r\n", "\n")), quote=True))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element: ``tag("a", "text", href="#x", aria_label="…")``.

    Args:
        children: strings are escaped, :class:`Html` stands as it is, None is nothing, other iterables are their items.
        attributes: a last underscore is dropped (``class_``), others become hyphens; None and False leave the attribute out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Children one after the other, without an element around them."""
    return Html("".join(_markup(child) for child in children))


def data_block(content: Any, **attributes: Attribute) -> Html:
    """JSON for the page's script. It is not run, and no string in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Html(f'<script type="application/json"{"".join(_attribute(k, v) for k, v in attributes.items())}>{text}</script>')


def table(found: Table) -> Html:
    """A table with its title, its notes, a button that copies it, and a frame that scrolls where it is too wide.

    Of a table that is looked up rather than read, more than :data:`FOLD_ABOVE` rows are folded away until they are asked for.
    """
    heads = [tag("th", one.name, scope="col", class_=_class(one)) for one in found.columns]
    body = []
    for index, (first, *others) in enumerate(found.texts):
        cells = [tag("td", cell, class_=_class(column)) for cell, column in zip(others, found.columns[1:], strict=True)]
        look = " ".join(["strong"] * (index == found.strong) + ["break"] * (index in found.breaks))
        body.append(tag("tr", tag("th", first, scope="row"), cells, class_=look or None))
    shown = tag("table", tag("thead", tag("tr", heads)), tag("tbody", body), aria_label=found.caption)
    button = tag("button", "Copy table", type="button", class_="copy", hidden=True)
    frame = tag("div", shown, class_="scroll", tabindex=0, role="region", aria_label=found.caption)
    notes = [tag("p", note, class_="note") for note in found.notes]
    if found.is_long and len(body) > FOLD_ABOVE:
        return details(f"{found.caption} ({len(body)} rows)", tag("div", frame, button, notes, class_="table"))
    return tag("div", tag("p", found.caption, class_="title"), frame, button, notes, class_="table")


def bullets(lines: Sequence[str]) -> Html | None:
    """A list of lines, or nothing where there are none."""
    return tag("ul", [tag("li", line) for line in lines]) if lines else None


def details(summary: str, *children: Child) -> Html:
    return tag("details", tag("summary", summary), *children)


def code(text: str) -> Html:
    """A block of text as it is, with a button that copies it."""
    button = tag("button", "Copy", type="button", class_="copy", hidden=True)
    return tag("div", tag("pre", tag("code", text), tabindex=0), button, class_="code")


def _class(column: Column) -> str | None:
    return "number" if column.is_number else None


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return str(child)
    if isinstance(child, str):
        return escape(child)
    if isinstance(child, int | float):
        return f"{child:g}" if isinstance(child, float) else str(child)
    return "".join(_markup(one) for one in child)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
