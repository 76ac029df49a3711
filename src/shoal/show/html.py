"""HTML as values: every string is escaped unless it is :class:`Html`, so what a model wrote stays text.

Names of models, texts and generations come from strangers. There is one way to make markup, :func:`tag`, and it escapes.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Union

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What no HTML file may hold, or no reader would see: control characters but tab and line feed, halves of surrogate pairs."""

FOLD_ABOVE = 12
"""Rows of a long table that is shown at once."""

VOID = frozenset({"meta", "link", "br", "hr", "input"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = Union[str, int, float, None, Iterable["Child"]]  # noqa: UP007  (a type that holds itself, in Python 3.11)
Attribute = str | int | float | bool | None


def escape(text: str) -> Html:
    """Text as markup that shows it; characters that cannot be shown become U+FFFD."""
    return Html(html.escape(CONTROL.sub("\ufffd", text.replace("\r\n", "\n")), quote=True))


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


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers are set flush right, and ``is_text`` marks what strangers wrote."""

    name: str
    is_number: bool = False


def number_columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, is_number=True) for name in names)


def table(caption: str, columns: Sequence[Column | str], rows: Iterable[Sequence[Child]], *, is_long: bool = False) -> Html:
    """A plain table with its title, a button that copies it, and a frame that scrolls where it is too wide.

    Args:
        rows: cells in the order of the columns; the first cell heads its row.
        is_long: what few read to the end: more than :data:`FOLD_ABOVE` rows are folded away until they are asked for.
    """
    heads = [Column(one) if isinstance(one, str) else one for one in columns]
    body = []
    for row in rows:
        cells = list(zip(row, heads, strict=True))
        first, *others = cells
        body.append(tag("tr", tag("th", first[0], scope="row"), [tag("td", c, class_=_class(h)) for c, h in others]))
    shown = tag(
        "table",
        tag("thead", tag("tr", [tag("th", one.name, scope="col", class_=_class(one)) for one in heads])),
        tag("tbody", body),
        aria_label=caption,
    )
    button = tag("button", "Copy table", type="button", class_="copy", hidden=True)
    frame = tag("div", shown, class_="scroll", tabindex=0, role="region", aria_label=caption)
    if is_long and len(body) > FOLD_ABOVE:
        return details(f"{caption} ({len(body)} rows)", tag("div", frame, button, class_="table"))
    return tag("div", tag("p", caption, class_="title"), frame, button, class_="table")


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
