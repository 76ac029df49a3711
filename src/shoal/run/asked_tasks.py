"""Task files and tasks of lm-eval under any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.answers import TaskAnswers
from shoal.evaluate.tasks.benchmark import Benchmark, compare_tasks
from shoal.evaluate.tasks.choice import score_task
from shoal.evaluate.tasks.task_files import Task, load_task
from shoal.evaluate.tasks.tokenised import task_pairs
from shoal.run.job import Inputs, window_of
from shoal.words.progress import tell

if TYPE_CHECKING:
    from shoal.evaluate.tasks.lm_eval_tasks import LoadedTask


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks that were read: files of choices and last words for the built-in scorer, the rest for lm-eval.

    Attributes:
        files: task files; lm-eval reads those of written answers.
        named: lm-eval's own tasks, loaded.
        n_items: the first items of each; None for all.
    """

    files: tuple[Task, ...] = ()
    named: tuple[LoadedTask, ...] = ()
    n_items: int | None = None

    def __bool__(self) -> bool:
        return bool(self.files or self.named)

    @property
    def scored(self) -> list[Task]:
        """Files for the built-in scorer."""
        return [task for task in self.files if task.form != "generation"]

    @property
    def written(self) -> list[Task]:
        """Files of written answers."""
        return [task for task in self.files if task.form == "generation"]

    def __str__(self) -> str:
        """Who scores what."""
        built_in = ", ".join(task.name for task in self.scored)
        by_lm_eval = ", ".join([*(task.name for task in self.written), *(task.name for task in self.named)])
        said = [f"{built_in} by the built-in scorer"] if built_in else []
        if by_lm_eval:
            from shoal.evaluate.tasks.lm_eval_tasks import lm_eval_version

            said.append(f"{by_lm_eval} by lm-eval {lm_eval_version()}")
        return "Tasks: " + "; ".join(said)


def open_tasks(
    names: Sequence[str], *, shots: int | None = None, n_items: int | None = None, include: Path | None = None
) -> Tasks:
    """Read task files and load lm-eval's tasks.

    Args:
        names: paths of JSON lines, or names of lm-eval's tasks, groups and tags.
        shots: solved examples before every item: the first items of a file; lm-eval's own choice for its tasks.
        n_items: the first items of every task; all unless given.
        include: folder of YAML tasks of lm-eval.
    Raises:
        ValueError: an unknown name, a file that cannot be read, a count below 1.
        ImportError: lm-eval is needed and not installed.
    """
    from shoal.evaluate.tasks.lm_eval_tasks import lm_eval_version, named_tasks

    if not names and (shots, n_items, include) != (None, None, None):
        raise ValueError("--shots, --items and --include are about tasks; give --task as well")
    _refuse_no_items(n_items)
    if shots is not None and shots < 0:
        raise ValueError(f"--shots {shots} needs 0 or more")
    files = [name for name in names if _is_file(name)]
    others = [name for name in names if not _is_file(name)]
    read = task_files(files, shots=shots or 0, n_items=n_items) if files else []
    if any(task.form == "generation" for task in read):
        lm_eval_version()
    named = named_tasks(others, shots=shots, include=include) if others else []
    _refuse_equal_names([*(task.name for task in read), *(task.name for task in named)])
    return Tasks(tuple(read), tuple(named), n_items)


def task_files(paths: Sequence[Path | str], *, shots: int = 0, n_items: int | None = None) -> list[Task]:
    """Task files for the built-in scorer, all items or the first ``n_items`` of each.

    Raises:
        ValueError: a file that cannot be read, two of one name, a count below 1, a count without a file.
    """
    _refuse_no_items(n_items)
    if n_items is not None and not paths:
        raise ValueError("--items is about tasks; give --task as well")
    read = [load_task(path, shots=shots) for path in paths]
    _refuse_equal_names([task.name for task in read])
    return read if n_items is None else [task.head(n_items) for task in read]


def _refuse_equal_names(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"two tasks have one name ({', '.join(names)}); rename the file of one of them")


def _refuse_no_items(n_items: int | None) -> None:
    if n_items is not None and n_items < 1:
        raise ValueError(f"--items {n_items} needs at least 1")


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".jsonl", ".json") or "/" in name or Path(name).is_file()


def answer_tasks(
    view: DecoderView,
    tasks: Tasks,
    *,
    tokenizer: Any,
    window: int | None,
    student: Student | None = None,
    who: str = "model",
) -> list[TaskAnswers]:
    """Ask one model all tasks.

    Args:
        student: an overlay on the view; the view's own model unless given.
        window: longest input in tokens.
        who: for the progress.
    Raises:
        ValueError: an item that cannot be scored, NaN scores.
    """
    from shoal.evaluate.tasks.lm_eval_tasks import ask_tasks, written_task

    for task in tasks.scored:  # All are checked before the first is scored, which may take hours.
        task_pairs(task, tokenizer=tokenizer, window=window)
    students = [TEACHER if student is None else student]
    found: list[TaskAnswers] = []
    for task in tasks.scored:
        step = partial(tell, f"{task.name}, {who}")
        found += score_task(view, task, tokenizer=tokenizer, students=students, window=window, progress=step)
    asked = [*(written_task(task, window=window) for task in tasks.written), *tasks.named]
    if asked:
        (answers,) = ask_tasks(
            view,
            asked,
            tokenizer=tokenizer,
            students=students,
            window=window,
            n_items=tasks.n_items,
            progress=partial(tell, f"lm-eval, {who}"),
        )
        found += answers
    return found


def tasks_against_teacher(inputs: Inputs, student: DecoderView | Student, tasks: Tasks) -> Benchmark:
    """Ask the teacher and a student the same items; the shorter of their windows holds for both.

    Raises:
        ValueError: an item that cannot be scored, NaN scores.
    """
    overlay = student if isinstance(student, Student) else None
    other = inputs.view if isinstance(student, Student) else student
    windows = [window for view in (inputs.view, other) if (window := window_of(view.config)) is not None]
    tokenizer, window = inputs.opened.need_tokenizer(), min(windows, default=None)
    ours = answer_tasks(inputs.view, tasks, tokenizer=tokenizer, window=window, who="teacher")
    theirs = answer_tasks(other, tasks, tokenizer=tokenizer, window=window, student=overlay, who="student")
    return compare_tasks(ours, theirs, seed=inputs.recipe.seed)
