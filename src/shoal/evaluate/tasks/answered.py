"""What one model answered to one task, whoever asked it: the common ground of accuracy, flips and stability.

The built-in scorer, generation and lm-eval all end here; :mod:`shoal.evaluate.tasks.benchmark` takes it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shoal.evaluate.stability import Answer, Answers
from shoal.evaluate.tasks.choice import TaskScores, choice_answers
from shoal.evaluate.tasks.last_word import last_word_answers, word_perplexity
from shoal.evaluate.tasks.task_files import TaskForm

TaskEngine = Literal["built-in", "lm-eval"]


@dataclass(frozen=True)
class TaskAnswers:
    """One model on one task.

    Attributes:
        metric: name of the accuracy, e.g. ``acc``, ``exact_match``.
        data_hash: of the items, equal for all models.
        chance: accuracy of guessing; 0 where there are no options.
        n_truncated: items whose context was cut from the left to fit the window.
        counted: the answers that the accuracy counts.
        norm: the answers by log-likelihood per character (acc_norm), for choices.
        weighed: mean NLL over context and option, where it is known: LLM-Streamline's stability.
        word_perplexity: for last words.
    """

    task: str
    form: TaskForm
    engine: TaskEngine
    metric: str
    data_hash: str
    chance: float
    n_truncated: int
    counted: Answers
    norm: Answers | None = None
    weighed: Answers | None = None
    word_perplexity: float | None = None


def answered(scores: TaskScores) -> TaskAnswers:
    """The answers behind the scores of multiple choice or last words."""
    task, is_choice = scores.task, scores.task.form == "choice"
    return TaskAnswers(
        task=task.name,
        form=task.form,
        engine="built-in",
        metric="acc" if is_choice else "greedy",
        data_hash=task.data_hash,
        chance=task.chance,
        n_truncated=scores.n_truncated,
        counted=choice_answers(scores, "option_nll") if is_choice else last_word_answers(scores),
        norm=norm_answers(scores) if is_choice else None,
        weighed=choice_answers(scores, "mean_nll") if is_choice else None,
        word_perplexity=None if is_choice else word_perplexity(scores),
    )


def norm_answers(scores: TaskScores) -> Answers:
    """The answers that acc_norm counts; scores are negative log-likelihoods per character of the option."""
    found = []
    for one, plain in zip(scores.items, choice_answers(scores, "option_nll").items, strict=True):
        per_character = np.array(plain.scores) / [float(len(choice)) for choice in one.item.choices]
        found.append(Answer(plain.key, plain.text, plain.gold, one.answer_norm, tuple(per_character.tolist())))
    return Answers(scores.task.name, "option_nll", tuple(found))
