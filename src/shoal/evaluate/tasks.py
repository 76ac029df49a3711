"""Task files: JSON lines of multiple choice (``ctx``, ``choices``, ``gold``) or of last words (``ctx``, ``target``).

One form per file. Texts are used as they stand: a choice brings its own leading space, as in lm-eval with an empty
``target_delimiter``. ``gold`` is a 0-based index. An item's key is a hash of all its fields, so it does not depend on the place
of the line in the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from shoal.types import nearest, stable_hash

Form = Literal["choice", "last_word"]
FIELDS: dict[Form, tuple[str, ...]] = {"choice": ("ctx", "choices", "gold"), "last_word": ("ctx", "target")}


@dataclass(frozen=True)
class TaskItem:
    """One item; a last word is an item of one choice, which is gold. ``line`` counts from 1."""

    key: str
    line: int
    ctx: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """The items of one file. ``chance``: the accuracy of guessing, the mean of 1 / number of choices (last words: 0)."""

    name: str
    path: Path
    form: Form
    items: tuple[TaskItem, ...]
    data_hash: str

    @property
    def chance(self) -> float:
        if self.form == "last_word":
            return 0.0
        return sum(1 / len(item.choices) for item in self.items) / len(self.items)

    def head(self, n: int) -> Task:
        """The first ``n`` items (all of them where there are fewer)."""
        return _task(self.path, self.form, self.items[:n])


def load_task(path: Path | str) -> Task:
    """Read a task file; its name is the file's without ``.jsonl``.

    Raises:
        ValueError: no such file, no items, a line that is not JSON, a missing, unknown or wrong field (with its line number).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no task file at {path}; give JSON lines with ctx, choices and gold, or with ctx and target")
    rows: list[tuple[int, Any]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); a task file is JSON lines") from None
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON strings may hold U+2028
        if line.strip():
            rows.append((number, _parsed(path, number, line)))
    if not rows:
        raise ValueError(f"{path} has no items; a task file needs at least one line of JSON")
    form = _form_of(path, *rows[0])
    return _task(path, form, tuple(_item(path, number, row, form) for number, row in rows))


def _task(path: Path, form: Form, items: tuple[TaskItem, ...]) -> Task:
    name = path.name.removesuffix(".jsonl").removesuffix(".json")
    return Task(name, path, form, items, stable_hash(form, sorted(item.key for item in items)))


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(row, dict):
        _wrong(path, number, f"needs an object with fields, got {line.strip()[:40]!r}")
    return row


def _form_of(path: Path, number: int, row: dict[str, Any]) -> Form:
    if "target" in row:
        return "last_word"
    if "choices" in row or "gold" in row:
        return "choice"
    known = sorted(set(sum(FIELDS.values(), ())))
    odd = next((name for name in row if name not in known), None)
    hint = f"; unknown field {odd!r}, {nearest(odd, known)}" if odd is not None else ""
    _wrong(path, number, f"needs the fields ctx, choices and gold, or ctx and target{hint}")


def _item(path: Path, number: int, row: dict[str, Any], form: Form) -> TaskItem:
    for name in row:
        if name not in FIELDS[form]:
            _wrong(path, number, f"unknown field {name!r}; {nearest(name, FIELDS[form])}")
    for name in FIELDS[form]:
        if name not in row:
            _wrong(path, number, f"the field {name!r} is missing; needed: {', '.join(FIELDS[form])}")
    ctx = _text(path, number, "ctx", row["ctx"])
    choices: tuple[str, ...]
    if form == "last_word":
        choices, gold = (_text(path, number, "target", row["target"]),), 0
    else:
        choices, gold = _choices(path, number, row["choices"]), row["gold"]
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        _wrong(
            path, number, f"gold={json.dumps(gold)} needs a whole number 0..{len(choices) - 1}, the index of the right choice"
        )
    if not all(choices):
        _wrong(path, number, f"{'target' if form == 'last_word' else 'a choice'} is empty; there is nothing to score")
    return TaskItem(stable_hash(ctx, choices, gold), number, ctx, choices, gold)


def _choices(path: Path, number: int, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        _wrong(path, number, f"choices={json.dumps(value)[:40]} needs a list of at least 2 texts")
    return tuple(_text(path, number, "every choice", one) for one in value)


def _text(path: Path, number: int, name: str, value: Any) -> str:
    if not isinstance(value, str):
        _wrong(path, number, f"{name} needs a text, got {json.dumps(value)[:40]}")
    return value


def _wrong(path: Path, number: int, reason: str) -> NoReturn:
    raise ValueError(f"{path}, line {number}: {reason}")
