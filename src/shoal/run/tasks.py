"""Task files under teacher and student, and answers that other evaluators wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.run.inputs import Inputs, Progress, silent, window_of

if TYPE_CHECKING:
    from shoal.decoder import DecoderView
    from shoal.evaluate import Benchmark, Stability, Task


def tasks_against_teacher(
    inputs: Inputs, student: DecoderView, tasks: Sequence[Task], *, progress: Progress = silent
) -> Benchmark:
    """Score a student of its own and the teacher on the same items.

    Raises:
        ValueError: an item that cannot be scored, or two tasks of one name.
    """
    from shoal.evaluate import compare_tasks, score_task

    views = (inputs.view, student)
    windows = [window for view in views if (window := window_of(view.config)) is not None]
    scores = []
    for view, who in zip(views, ("teacher", "student"), strict=True):
        scored = []
        for task in tasks:
            what = f"{task.name}, {who}"
            scored += score_task(
                view,
                task,
                tokenizer=inputs.opened.need_tokenizer(),
                window=min(windows, default=None),
                progress=lambda done, total, what=what: progress(what, done, total),  # type: ignore[misc]
            )
        scores.append(scored)
    return compare_tasks(*scores, seed=inputs.recipe.seed)


@dataclass(frozen=True)
class FromFiles:
    """Stability of every task, and the number of LLM-Streamline's script where its inputs are those it was written for."""

    tasks: tuple[Stability, ...]
    official: dict[str, float]


def stability_of_files(teacher: Path, student: Path, *, seed: int = 0) -> FromFiles:
    """Compare two folders of OpenCompass predictions or of lm-eval sample logs.

    Raises:
        ValueError: what cannot be read, or other tasks or items in one than in the other.
    """
    from shoal.evaluate import load_answers, official_stability, stability

    ours, theirs = load_answers(teacher), load_answers(student)
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"{teacher} holds the tasks {', '.join(ours)}; {student} holds {', '.join(theirs)}: both need the same"
        )
    found = tuple(stability(ours[name], theirs[name], seed=seed) for name in ours)
    official = {
        name: official_stability(ours[name], theirs[name])
        for name in ours
        if ours[name].variant == "mean_nll"
        and [a.key for a in ours[name].items] == [b.key for b in theirs[name].items]  # it reads line by line
    }
    return FromFiles(found, official)
