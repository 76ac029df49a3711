"""Multiple choice by log-likelihood: a batched scorer on the engine, which reads the context of an item once for all options.

For context tokens c and option tokens o (as lm-eval splits and truncates them, :mod:`shoal.evaluate.tasks.tokenised`)::

    loglikelihood = sum over o of ln p(o_i | c, o_<i)
    mean_nll      = -(sum of ln p over all tokens of c and o but the first) / (number of tokens of c and o)
    is_greedy     = every token of o is the most probable one at its place

``mean_nll`` is what OpenCompass calls PPL: nats per token, no exp, and the first token counts in the denominator.
acc picks the highest loglikelihood, acc_norm the highest loglikelihood per character of the option; both as lm-eval.
Logarithms in fp32, sums in fp64. Shapes: B rows, T tokens, V vocabulary, S segments (contexts and options), P scored places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.evaluate.stability import Answer, Answers, Variant
from shoal.evaluate.tasks.answers import TaskAnswers, brief, facts_of, word_perplexity
from shoal.evaluate.tasks.task_files import Task, TaskItem
from shoal.evaluate.tasks.tokenised import (
    TokenPair,
    TokenRow,
    batch_of,
    first_equal,
    grouped,
    rows_of,
    shares_context,
    task_pairs,
)
from shoal.measure.divergence import tokens_per_chunk

TOKENS_PER_BATCH = {"cpu": 1024}  # A larger batch leaves the cache and is a third slower on the bundled model.
TOKENS_ON_DEVICES = 8192


@dataclass(frozen=True)
class PairScore:
    """What one model says about an option after its context."""

    loglikelihood: float
    mean_nll: float
    is_greedy: bool


def score_task(
    view: DecoderView,
    task: Task,
    *,
    tokenizer: object,
    students: Sequence[Student] = (TEACHER,),
    window: int | None = None,
    tokens_per_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TaskAnswers]:
    """Score every option of every item under every student, all in one reading of the text.

    Args:
        students: overlays on the view; include ``TEACHER`` for the teacher's own answers. Layers they have in common run once.
        window: longest input in tokens; longer contexts are cut from the left and counted. None: no limit.
        tokens_per_batch: tokens read at once, padding included; at least one row. 1024 on a CPU, 8192 elsewhere unless given.
        progress: called with (batches done, batches in all).
    Raises:
        ValueError: a task of written answers, an item that cannot be scored (with the file and line), NaN or infinite states.
    """
    pairs = task_pairs(task, tokenizer=tokenizer, window=window)
    scored, _ = score_pairs(view, pairs, students=students, tokens_per_batch=tokens_per_batch, progress=progress)
    n_truncated = sum(any(pair.n_cut for pair in options) for options in pairs)
    return [answers_of_scores(task, items, n_truncated=n_truncated) for items in scored]


def answers_of_scores(task: Task, scores: Sequence[Sequence[PairScore]], *, n_truncated: int = 0) -> TaskAnswers:
    """What one model answers; ``scores``: per item and option."""
    facts = facts_of(task, n_truncated=n_truncated)
    if task.form == "last_word":
        words = _answers(task, "last_word", scores, lambda item, of: (-of[0].loglikelihood,))
        return TaskAnswers(facts, words, word_perplexity=word_perplexity(words))
    return TaskAnswers(
        facts,
        counted=_answers(task, "option_nll", scores, lambda item, of: tuple(-one.loglikelihood for one in of)),
        norm=_answers(
            task, "option_nll", scores,
            lambda item, of: tuple(-one.loglikelihood / len(text) for one, text in zip(of, item.choices, strict=True)),
        ),
        weighed=_answers(task, "mean_nll", scores, lambda item, of: tuple(one.mean_nll for one in of)),
    )  # fmt: skip


def _answers(
    task: Task,
    variant: Variant,
    scores: Sequence[Sequence[PairScore]],
    read: Callable[[TaskItem, Sequence[PairScore]], tuple[float, ...]],
) -> Answers:
    """The option of the lowest score is taken, the first of equals; a last word where it is the greedy continuation."""
    found = []
    for item, options in zip(task.items, scores, strict=True):
        values = read(item, options)
        if variant == "last_word":
            text, chosen = f"{item.ctx[-60:]} |{item.choices[0]}", 0 if options[0].is_greedy else None
        else:
            text, chosen = brief(item.ctx), int(np.argmin(values))
        found.append(Answer(item.key, text, item.gold, chosen, values))
    return Answers(task.name, variant, tuple(found))


def score_pairs(
    view: DecoderView,
    pairs: Sequence[Sequence[TokenPair]],
    *,
    students: Sequence[Student] = (TEACHER,),
    tokens_per_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[list[list[PairScore]]], bool]:
    """Score options after their contexts, item by item; the arguments are those of :func:`score_task`.

    Returns:
        Per student, item and option the scores; and whether the context of an item was read once for its options.
    """
    longest = max(len(pair.context) + len(pair.option) for options in pairs for pair in options)
    share = any(len(options) > 1 for options in pairs) and shares_context(view, longest=longest)
    size = TOKENS_PER_BATCH.get(view.device.type, TOKENS_ON_DEVICES) if tokens_per_batch is None else tokens_per_batch
    groups = list(grouped(rows_of(pairs, share=share), tokens_per_batch=size))
    sums = [_Sums(pairs) for _ in students]

    def sink(reading: Reading, finals: list[Tensor]) -> None:
        places = _Places(groups[reading.batch.index], view.device)
        for member, h_BTD in enumerate(finals):
            sums[member].add(places, view.head(h_BTD, reading))
        if progress is not None:
            progress(reading.batch.index + 1, len(groups))

    batches = (batch_of(group, index) for index, group in enumerate(groups))
    run_pass(view, batches, students=students, sink=sink)
    return [one.scores(pairs) for one in sums], share


class _Places:
    """Where the tokens of a batch are predicted: row, position, the token, and the segment it belongs to."""

    def __init__(self, group: Sequence[TokenRow], device: torch.device) -> None:
        rows: list[int] = []
        positions: list[int] = []
        tokens: list[int] = []
        segments: list[int] = []
        self.group, n_segments = group, 0
        for b, row in enumerate(group):
            n_context, at = len(row.context), len(row.context)
            spots = [list(range(n_context - 1))]
            for option in row.options:
                spots.append([n_context - 1, *range(at, at + len(option) - 1)])
                at += len(option) - 1
            for where, what in zip(spots, (row.context[1:], *row.options), strict=True):
                rows += [b] * len(where)
                positions += where
                tokens += what
                segments += [n_segments] * len(where)
                n_segments += 1
        self.n_segments = n_segments
        self.row_P, self.position_P, self.token_P, self.segment_P = (
            torch.tensor(x, device=device) for x in (rows, positions, tokens, segments)
        )

    def measure(self, logits_BTV: Tensor) -> tuple[list[float], list[bool]]:
        """Per segment: the sum of log-likelihoods, and whether every token is the most probable one."""
        pieces = []
        for flat_NV in logits_BTV.flatten(0, 1).split(tokens_per_chunk(logits_BTV)):
            flat_NV = flat_NV.float()
            pieces.append((flat_NV.logsumexp(-1), flat_NV.argmax(-1)))
        norm_N, best_N = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        at_P = self.row_P * logits_BTV.shape[1] + self.position_P
        logp_P = logits_BTV[self.row_P, self.position_P, self.token_P].float() - norm_N[at_P]
        missed_P = (best_N[at_P] != self.token_P).long()
        device = logits_BTV.device
        total_S = torch.zeros(self.n_segments, dtype=torch.float64, device="cpu")
        total_S.index_add_(0, self.segment_P.cpu(), logp_P.cpu().double())
        missed_S = torch.zeros(self.n_segments, dtype=torch.long, device=device).index_add_(0, self.segment_P, missed_P)
        return total_S.tolist(), (missed_S == 0).tolist()


class _Sums:
    """Scores of one student, option by option, filled batch by batch."""

    def __init__(self, pairs: Sequence[Sequence[TokenPair]]) -> None:
        self._loglikelihood = [[0.0] * len(options) for options in pairs]
        self._context = [[0.0] * len(options) for options in pairs]
        self._greedy = [[False] * len(options) for options in pairs]

    def add(self, places: _Places, logits_BTV: Tensor) -> None:
        totals, greedy = places.measure(logits_BTV)
        segment = 0
        for row in places.group:
            for number, (item, option) in enumerate(row.which, start=1):
                self._context[item][option] = totals[segment]
                self._loglikelihood[item][option] = totals[segment + number]
                self._greedy[item][option] = greedy[segment + number]
            segment += 1 + len(row.which)

    def scores(self, pairs: Sequence[Sequence[TokenPair]]) -> list[list[PairScore]]:
        found = []
        for index, options in enumerate(pairs):
            scores = []
            for number in (first_equal(options, number) for number in range(len(options))):
                own, context, pair = self._loglikelihood[index][number], self._context[index][number], options[number]
                mean_nll = -(context + own) / (len(pair.context) + len(pair.option))
                scores.append(PairScore(own, mean_nll, self._greedy[index][number]))
            found.append(scores)
        return found
