"""What one model answered to one task, whoever asked it: the common ground of accuracy, flips and stability.

The built-in scorer and lm-eval both end here; :mod:`shoal.evaluate.tasks.benchmark` takes it from here.
"""

import math
from dataclasses import dataclass
from typing import Literal

from shoal.evaluate.stability import Answers
from shoal.evaluate.tasks.task_files import Task, TaskForm
from shoal.words.numbers import saturating_exp
from shoal.words.records import Record

TaskEngine = Literal["built-in", "lm-eval"]


class TaskFacts(Record):
    """What a task is, whoever answers it.

    Attributes:
        metric: name of the accuracy: acc for choices, the share of greedy words for last words, exact_match for texts.
        data_hash: of the items, equal for all models.
        n_truncated: items whose context was cut from the left to fit the window.
        chance: accuracy of guessing; 0 where there are no options.
    """

    task: str
    form: TaskForm
    engine: TaskEngine = "built-in"
    metric: str = "acc"
    data_hash: str
    n_items: int
    n_truncated: int = 0
    chance: float = 0.0

    @property
    def cut_said(self) -> str:
        """How many contexts did not fit, for people."""
        return f"{self.n_truncated} of {self.n_items} contexts cut from the left to fit the window"


@dataclass(frozen=True)
class TaskAnswers:
    """One model on one task.

    Attributes:
        counted: the answers that the accuracy counts.
        norm: the answers by log-likelihood per character (acc_norm), for choices.
        weighed: mean NLL over context and option, where it is known: LLM-Streamline's stability.
        word_perplexity: for last words.
    """

    facts: TaskFacts
    counted: Answers
    norm: Answers | None = None
    weighed: Answers | None = None
    word_perplexity: float | None = None


def facts_of(task: Task, *, n_truncated: int) -> TaskFacts:
    """The facts of a task file that the built-in scorer reads."""
    return TaskFacts(
        task=task.name, form=task.form, metric="acc" if task.form == "choice" else "greedy", data_hash=task.data_hash,
        n_items=len(task.items), n_truncated=n_truncated, chance=task.chance,
    )  # fmt: skip


def word_perplexity(words: Answers) -> float:
    """exp of the mean negative log-likelihood *per word*, as lm-eval has it; infinite when it overflows."""
    return saturating_exp(math.fsum(one.scores[0] for one in words.items) / len(words.items))


def brief(text: str) -> str:
    """The end of a context on one line, for people."""
    return " ".join(text[-80:].split())
