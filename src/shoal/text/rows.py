"""What a row of a data set says, whatever its columns are called: a text, turns of a chat, or a question and its answer.

The columns of public data sets, in the order in which they are looked for (``FORMS``): ``text``; ``messages`` (OpenAI) and
``conversations`` (ShareGPT, SlimOrca); ``prompt`` and ``completion``; ``instruction`` and ``output`` (Alpaca) or ``response``
(Dolly); ``question`` and ``response`` (OpenOrca) or ``answer``; ``content`` (code). Any other column is named with ``--field``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Turn = dict[str, Any]
Chat = Callable[[list[Turn]], str]
"""From turns, each with ``role`` and ``content``, to one text."""

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Names of roles in ShareGPT and its kin; a role that is not here keeps its name."""


@dataclass(frozen=True)
class Form:
    """Columns that make a text.

    Attributes:
        columns: one that holds a text or turns, or two that hold a question and its answer.
        system, more: a column with the system's turn; one with what belongs to the question. Both may be absent or empty.
        joined: the two columns are one text that was cut in two, and are put together as they are.
    """

    columns: tuple[str, ...]
    system: str | None = None
    more: str | None = None
    joined: bool = False

    @property
    def every_column(self) -> tuple[str, ...]:
        return (*self.columns, *(name for name in (self.system, self.more) if name))


FORMS = (
    Form(("text",)),
    Form(("messages",)),
    Form(("conversations",)),
    Form(("conversation",)),
    Form(("prompt", "completion"), joined=True),
    Form(("instruction", "output"), system="system", more="input"),
    Form(("instruction", "response"), system="system", more="context"),
    Form(("question", "response"), system="system_prompt"),
    Form(("question", "answer"), more="context"),
    Form(("prompt", "response"), system="system"),
    Form(("content",)),
)
COLUMNS = tuple(dict.fromkeys(name for form in FORMS for name in form.every_column))
"""Every column that may be looked at."""


def text_of(row: Mapping[str, Any], where: str, chat: Chat, *, field: str | None = None) -> str:
    """The text of a row.

    Args:
        where: file and row, for messages.
        chat: makes one text of turns.
        field: name of the column that holds the text or the turns, dotted for one inside another; found by ``FORMS`` unless
            given.
    Raises:
        ValueError: no such column, or what it holds is neither text nor turns; one line that names file and row.
    """
    if field is not None:
        value = at(row, field)
        if value is None and field in row:
            raise ValueError(f"{where}: {field} is empty (null); leave the row out")
        if value is None:
            raise ValueError(f"{where} has no {field!r}, only {names_of(row)}; name another with --field")
        return _said(value, where, field, chat)
    for form in FORMS:
        values = [row.get(name) for name in form.columns]
        if all(value is not None for value in values):
            if len(values) == 1:
                return _said(values[0], where, form.columns[0], chat)
            return _pair(row, where, form, chat)
    empty = next((name for form in FORMS for name in form.columns if name in row and row[name] is None), None)
    if empty is not None:
        raise ValueError(f"{where}: {empty} is empty (null), and nothing else of the row is text; leave the row out")
    raise ValueError(
        f"{where} has no column that Shoal knows as text, only {names_of(row)}; name the one that holds it with --field NAME"
    )


def at(row: Mapping[str, Any], key: str) -> Any:
    """The value of a column, or at a dotted path inside one; None where there is none."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def names_of(row: Mapping[str, Any]) -> str:
    """The columns of a row, for a message."""
    names = sorted(str(name)[:40] for name in row)
    return (", ".join(names[:12]) + (", ..." if len(names) > 12 else "")) or "nothing"


def _said(value: Any, where: str, name: str, chat: Chat) -> str:
    if isinstance(value, str) and name not in ("messages", "conversations", "conversation"):
        return value
    if isinstance(value, list):
        return _chat(turns_of(value, where, name), where, chat)
    wanted = "a list of turns with role and content" if name in ("messages", "conversations") else "a text or a list of turns"
    raise ValueError(f"{where}: {name} is {_kind(value)}; it must be {wanted}")


def _pair(row: Mapping[str, Any], where: str, form: Form, chat: Chat) -> str:
    """A question and its answer: turns of a chat, or the two halves of one text."""
    (asked, answered), (ask, answer) = form.columns, (row[name] for name in form.columns)
    if form.joined and isinstance(ask, str) and isinstance(answer, str):
        return ask + answer
    turns: list[Turn] = []
    system = row.get(form.system) if form.system else None
    if system:
        turns.append({"role": "system", "content": _text(system, where, str(form.system))})
    if isinstance(ask, list):
        turns += turns_of(ask, where, asked)
    else:
        more = row.get(form.more) if form.more else None
        parts = [_text(ask, where, asked), *([_text(more, where, str(form.more))] if more else [])]
        turns.append({"role": "user", "content": "\n\n".join(parts)})
    if isinstance(answer, list):
        turns += turns_of(answer, where, answered)
    else:
        turns.append({"role": "assistant", "content": _text(answer, where, answered)})
    return _chat(turns, where, chat)


def turns_of(value: Sequence[Any], where: str, name: str = "messages") -> list[Turn]:
    """Turns with ``role`` and ``content`` from those of OpenAI (``role``, ``content``) or ShareGPT (``from``, ``value``).

    Content in parts is joined; a turn without content (a call of a tool) has an empty one.

    Raises:
        ValueError: a turn that is no object or names no role, or a part that is no text.
    """
    turns = []
    for number, turn in enumerate(value, start=1):
        here = f"{where}: {name}, turn {number}"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{here} is {_kind(turn)}; it must be an object with role and content (or from and value)")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str):
            raise ValueError(f"{here} has {names_of(turn)}; it needs role and content (or from and value)")
        if "role" in turn:
            turns.append({**turn, "content": _joined(turn.get("content"), here)})
        else:
            turns.append({"role": ROLES.get(role, role), "content": _joined(turn.get("value"), here)})
    if not turns:
        raise ValueError(f"{where}: {name} has no turns; leave the row out")
    return turns


def _joined(content: Any, here: str) -> str:
    """One text of a turn's content: a text, parts of text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{here}: the content is {_kind(content)}; it must be a text or a list of parts")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = repr(part.get("type")) if isinstance(part, Mapping) else _kind(part)
            raise ValueError(f"{here} holds a part of type {kind[:40]}, which is no text; leave the row out")
        texts.append(text)
    return "".join(texts)


def _chat(turns: list[Turn], where: str, chat: Chat) -> str:
    try:
        return chat(turns)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {_kind(value)}; it must be a text")
    return value


def _kind(value: Any) -> str:
    """What a value is, in words, with the beginning of it."""
    kinds = {str: "a text", list: "a list", dict: "an object", bool: "true or false", type(None): "nothing"}
    found = kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    return f"{found} ({json.dumps(value, default=str)[:30]})" if isinstance(value, str | int | float) else found
