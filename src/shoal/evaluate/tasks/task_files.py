"""Task files: JSON lines of multiple choice, of last words, or of questions whose answer the model writes.

``ctx``, ``choices``, ``gold``: multiple choice; ``gold`` is a 0-based index. ``ctx``, ``target``: a last word. ``ctx``,
``answer``: the model writes one line, which must be the answer. ``question``, ``answer``: the form of GSM8K; the answer ends
with ``#### N``, and so must what the model writes. One form per file. Texts are used as they stand: a choice brings its own
leading space, as in lm-eval with an empty ``target_delimiter``. An item's key is a hash of its prompt, options and gold, so it
does not depend on the place of the line in the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from shoal.words.reading import parse_json, read_bytes
from shoal.words.records import nearest, stable_hash

TaskForm = Literal["choice", "last_word", "generation"]
Written = Literal["line", "gsm8k"]
"""What a model writes: one line that is the answer, or a solution that ends with ``#### N`` as in GSM8K."""


@dataclass(frozen=True)
class TaskLayout:
    """A form of file: its fields, what they mean, and what a model writes."""

    form: TaskForm
    fields: tuple[str, ...]
    written: Written | None = None


LAYOUTS = (
    TaskLayout("choice", ("ctx", "choices", "gold")),
    TaskLayout("last_word", ("ctx", "target")),
    TaskLayout("generation", ("ctx", "answer"), "line"),
    TaskLayout("generation", ("question", "answer"), "gsm8k"),
)
FORMS_SAID = "; ".join(f"{', '.join(layout.fields[:-1])} and {layout.fields[-1]}" for layout in LAYOUTS)


@dataclass(frozen=True)
class TaskItem:
    """One item; a last word or a written answer is an item of one choice, which is gold. ``line`` counts from 1."""

    key: str
    line: int
    ctx: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """The items of one file. ``chance``: the accuracy of guessing, the mean of 1 / number of choices (0 without choices).
    ``written``: for generation."""

    name: str
    path: Path
    form: TaskForm
    items: tuple[TaskItem, ...]
    data_hash: str
    written: Written | None = None

    @property
    def chance(self) -> float:
        if self.form != "choice":
            return 0.0
        return sum(1 / len(item.choices) for item in self.items) / len(self.items)

    def head(self, n: int) -> Task:
        """The first ``n`` items (all of them where there are fewer)."""
        return _task(self.path, self.form, self.items[:n], written=self.written)


def load_task(path: Path | str, *, shots: int = 0) -> Task:
    """Read a task file; its name is the file's without ``.jsonl``.

    Args:
        shots: the first items of the file become solved examples before every other item, and are not scored themselves.
    Raises:
        ValueError: no such file, no items, a line that is not JSON, a missing, unknown or wrong field (with its line number),
            shots below 0 or as many as there are items.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no task file at {path}; give JSON lines with {FORMS_SAID}")
    rows: list[tuple[int, Any]] = []
    try:
        text = read_bytes(path).decode("utf-8-sig")  # Some editors begin every file with a byte order mark.
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); a task file is JSON lines") from None
    for number, line in enumerate(
        text.split("\n"), start=1
    ):  # The method splitlines would also split at U+2028, which JSON strings may hold.
        if line.strip():
            rows.append((number, _parsed(path, number, line)))
    if not rows:
        raise ValueError(f"{path} has no items; a task file needs at least one line of JSON")
    if not 0 <= shots < len(rows):
        raise ValueError(f"shots={shots} needs 0..{len(rows) - 1}: {path} has {len(rows)} items, and one must be left to score")
    layout = _layout_of(path, *rows[0])
    pairs = [_item(path, number, row, layout) for number, row in rows]
    examples = "".join(f"{item.ctx}{solution}\n\n" for item, solution in pairs[:shots])
    return _task(path, layout.form, tuple(_after(examples, item) for item, _ in pairs[shots:]), written=layout.written)


def _task(path: Path, form: TaskForm, items: tuple[TaskItem, ...], *, written: Written | None = None) -> Task:
    name = path.name.removesuffix(".jsonl").removesuffix(".json")
    return Task(name, path, form, items, stable_hash(form, sorted(item.key for item in items)), written)


def _after(examples: str, item: TaskItem) -> TaskItem:
    """The item with solved examples before it."""
    if not examples:
        return item
    ctx = examples + item.ctx
    return replace(item, ctx=ctx, key=stable_hash(ctx, item.choices, item.gold))


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    row = parse_json(line, f"{path}, line {number}", unique=True)
    if not isinstance(row, dict):
        _wrong(path, number, f"needs an object with fields, got {line.strip()[:40]!r}")
    return row


def _layout_of(path: Path, number: int, row: dict[str, Any]) -> TaskLayout:
    """The layout that the first row has most of: its telling fields, then all of them."""
    best = max(LAYOUTS, key=lambda layout: (sum(name in row for name in layout.fields[1:]), layout.fields[0] in row))
    if any(name in row for name in best.fields[1:]):
        return best
    known = sorted({name for layout in LAYOUTS for name in layout.fields})
    odd = next((name for name in row if name not in known), None)
    hint = f". Unknown field {odd!r}, {nearest(odd, known)}" if odd is not None else ""
    _wrong(path, number, f"needs the fields {FORMS_SAID}{hint}")


def _item(path: Path, number: int, row: dict[str, Any], layout: TaskLayout) -> tuple[TaskItem, str]:
    """An item, and its solution as an example before other items shows it."""
    for name in row:
        if name not in layout.fields:
            _wrong(path, number, f"unknown field {name!r}; {nearest(name, layout.fields)}")
    for name in layout.fields:
        if name not in row:
            _wrong(path, number, f"the field {name!r} is missing; needed: {', '.join(layout.fields)}")
    first, second = layout.fields[:2]
    ctx = _text(path, number, first, row[first])
    choices: tuple[str, ...]
    if layout.form == "choice":
        choices, gold = _choices(path, number, row["choices"]), row["gold"]
    else:
        choices, gold = (_text(path, number, second, row[second]),), 0
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        _wrong(
            path, number, f"gold={json.dumps(gold)} needs a whole number 0..{len(choices) - 1}, the index of the right choice"
        )
    if not all(choices):
        _wrong(path, number, f"{second if layout.form != 'choice' else 'a choice'} is empty; there is nothing to score")
    solution = choices[gold]
    if layout.written is not None:
        ctx = f"Question: {ctx}\nAnswer:" if layout.written == "gsm8k" else ctx
        _check_answer(path, number, solution, layout.written)
        solution = f" {solution}"
    return TaskItem(stable_hash(ctx, choices, gold), number, ctx, choices, gold), solution


def _check_answer(path: Path, number: int, text: str, written: Written) -> None:
    if written == "gsm8k" and not re.search(r"#### -?[\d.,]+\s*$", text):
        _wrong(path, number, f"answer={json.dumps(text[-40:])} needs to end with '#### N', N the number that is right")
    if written == "line" and "\n" in text:
        _wrong(path, number, f"answer={json.dumps(text[:40])} needs one line of text; the model's line is compared with it")


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
