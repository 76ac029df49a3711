"""Last-word prediction (LAMBADA): the one right word after a long text, as lm-eval measures it.

accuracy: share of items whose word is greedy, every token of it; perplexity: exp of minus the mean log-likelihood *per word*.
The word is scored as an item of one choice by :func:`shoal.evaluate.tasks.choice.score_task`.
"""

from __future__ import annotations

import math

from shoal.evaluate.stability import Answer, Answers
from shoal.evaluate.tasks.choice import TaskScores


def accuracy(scores: TaskScores) -> float:
    """Share of items whose word is the greedy continuation."""
    return sum(one.is_greedy[0] for one in scores.items) / len(scores.items)


def word_perplexity(scores: TaskScores) -> float:
    """exp of the mean negative log-likelihood per word; infinite when it overflows."""
    nll = -math.fsum(one.loglikelihood[0] for one in scores.items) / len(scores.items)
    return math.exp(nll) if nll < 709.0 else math.inf


def last_word_answers(scores: TaskScores) -> Answers:
    """For :func:`shoal.evaluate.stability.stability`: the word is chosen or it is not."""
    return Answers(
        scores.task.name,
        "last_word",
        tuple(
            Answer(
                key=one.item.key,
                text=f"{one.item.ctx[-60:]} |{one.item.choices[0]}",
                gold=0,
                chosen=0 if one.is_greedy[0] else None,
                scores=(-one.loglikelihood[0],),
            )
            for one in scores.items
        ),
    )
