"""What one model answered to one task, whoever asked it: the common ground of accuracy, flips and stability.

The built-in scorer and lm-eval both end here; :mod:`shoal.evaluate.tasks.benchmark` takes it from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shoal.evaluate.stability import Answer, Answers
from shoal.evaluate.tasks.choice import TaskScores
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


def answered(scores: TaskScores) -> TaskAnswers:
    """The answers behind the scores of multiple choice or last words."""
    facts = facts_of(scores.task, n_truncated=scores.n_truncated)
    if scores.task.form == "choice":
        counted, weighed = choice_answers(scores, "option_nll"), choice_answers(scores, "mean_nll")
        return TaskAnswers(facts, counted, norm=norm_answers(scores), weighed=weighed)
    counted = last_word_answers(scores)
    return TaskAnswers(facts, counted, word_perplexity=word_perplexity(counted))


def choice_answers(scores: TaskScores, variant: Literal["mean_nll", "option_nll"]) -> Answers:
    """The lowest score is the answer; with ``option_nll`` it is acc's."""
    found = []
    for one in scores.items:
        values = one.mean_nll if variant == "mean_nll" else tuple(-value for value in one.loglikelihood)
        found.append(Answer(one.item.key, brief(one.item.ctx), one.item.gold, int(np.argmin(values)), values))
    return Answers(scores.task.name, variant, tuple(found))


def norm_answers(scores: TaskScores) -> Answers:
    """The answers that acc_norm counts; scores are negative log-likelihoods per character of the option."""
    found = []
    for one, plain in zip(scores.items, choice_answers(scores, "option_nll").items, strict=True):
        per_character = np.array(plain.scores) / [float(len(choice)) for choice in one.item.choices]
        found.append(Answer(plain.key, plain.text, plain.gold, one.answer_norm, tuple(per_character.tolist())))
    return Answers(scores.task.name, "option_nll", tuple(found))


def last_word_answers(scores: TaskScores) -> Answers:
    """The word (LAMBADA's, all its tokens) is the greedy continuation or it is not; its score is its NLL."""
    found = []
    for one in scores.items:
        text = f"{one.item.ctx[-60:]} |{one.item.choices[0]}"
        found.append(Answer(one.item.key, text, 0, 0 if one.is_greedy[0] else None, (-one.loglikelihood[0],)))
    return Answers(scores.task.name, "last_word", tuple(found))


def word_perplexity(words: Answers) -> float:
    """exp of the mean negative log-likelihood *per word*, as lm-eval has it; infinite when it overflows."""
    return saturating_exp(math.fsum(one.scores[0] for one in words.items) / len(words.items))


def brief(text: str) -> str:
    """The end of a context on one line, for people."""
    return " ".join(text[-80:].split())
