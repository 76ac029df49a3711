"""What people see: progress bars with rate and time left, and tables. JSON goes to stdout; when it does, people read stderr."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from shoal.cli.expected import Expected
from shoal.engine.workers import join
from shoal.words.progress import OPENING, LogLines, stage_in, watched

FIRST_STAGE = "begin the first stage"
"""At work in the block behind the one that opened the model, until a stage tells of itself."""
PLAIN_WIDTH = 120  # Tables in a file or a pipe have so many columns.


class Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:,.1f} s each", style="dim")


class Screen:
    """Where a verb talks to people. Of several processes the first one talks.

    Args:
        as_json: the result goes to stdout as JSON; tables and lines for people go to stderr.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._silent = not join().is_first
        self.console = Console(stderr=as_json, quiet=self._silent)
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console = Console(stderr=as_json, quiet=self._silent, width=PLAIN_WIDTH)
        self._errors = Console(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._shown = ""
        self._lines = LogLines(self._line)
        self._expected: Expected | None = None

    def expect(self, seconds: Sequence[float]) -> None:
        """From here on progress also says how far the whole is, in minutes; ``seconds`` is expected of each stage, in order."""
        self._expected = Expected(seconds)

    def _whole(self) -> str:
        """``(3 of ~12 min)``; empty where nothing is expected or it is a matter of seconds."""
        said = str(self._expected or "")
        return f" ({said})" if said else ""

    @contextmanager
    def progress(self, what: str = OPENING) -> Iterator[None]:
        """Show what the block tells: as bars, or off a terminal as lines with the time, twenty seconds apart at most.

        Args:
            what: is at work until the block tells of something else.
        """
        if self._silent:
            yield
            return
        self._lines.begin(what)
        if not self._errors.is_terminal:
            with self._lines, watched(self.step):
                yield
            return
        name = TextColumn("{task.description}", table_column=Column(ratio=1, overflow="ellipsis", no_wrap=True))
        columns = (name, BarColumn(bar_width=12), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        with Progress(*columns, console=self._errors, transient=True, expand=True) as self._bars, watched(self.step):
            yield
        self._bars, self._shown = None, ""
        self._tasks.clear()

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """While the block runs, work without steps: said at once on a terminal, and in a log where it takes long."""
        with self.progress(what):
            if self._bars is not None:
                self.step(what, 0, 1)
            yield

    def step(self, what: str, done: int, total: int) -> None:
        """Progress of one stage: ``done`` of ``total`` steps."""
        if self._expected is not None:
            self._expected.begin(stage_in(what))
        if self._bars is None:
            self._lines(what, done, total)
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(escape(what), total=total)
        if what != self._shown:
            self._shown = what
            for name, task in self._tasks.items():
                self._bars.update(task, visible=name == what)
        self._bars.update(self._tasks[what], completed=done, total=total, description=escape(what) + self._whole())

    def _line(self, line: str) -> None:
        from shoal.show.clean_text import clean  # The import stands here, so that ``--help`` reads no tables.

        print(clean(line) + self._whole(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line for people, above the bars where there are some."""
        from shoal.show.clean_text import clean  # The import stands here, so that ``--help`` reads no tables.

        with self._without_bars():
            self.console.print(clean(text), highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _without_bars(self) -> Iterator[None]:
        """The bars are taken off the terminal while something else is written."""
        if self._bars is None:
            yield
            return
        self._bars.stop()
        yield
        self._bars.start()

    def show(self, table: Any) -> None:
        self.console.print(table)

    def result(self, content: Any) -> None:
        """The verb's result as JSON on stdout, when asked for."""
        if self.as_json and not self._silent:
            print(json.dumps(_as_in_files(content), indent=2, allow_nan=False))


def _as_in_files(content: Any) -> Any:
    """With "NaN" and "Infinity" as texts, as :class:`shoal.words.records.Record` writes them: JSON has no such numbers."""
    if isinstance(content, dict):
        return {name: _as_in_files(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_as_in_files(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    return content


def steps_said(steps: Mapping[str, str]) -> list[str]:
    """Lines for people: what can be done next, with its command."""
    return ["What next:", *(f"  {what + ':':<15}{command}" for what, command in steps.items())]
