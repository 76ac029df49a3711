"""Measuring on the evaluation slice: a model on its own, or against a teacher."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shoal.engine.open import Opened, open_model
from shoal.engine.opening import Opening
from shoal.engine.spread import placement
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.comparison import other_tokenizer
from shoal.evaluate.cost import cost
from shoal.evaluate.evaluation import (
    Evaluation,
    Figures,
    Measured,
    compare,
    refuse_other_vocabulary,
    token_stream,
    usual_stride,
)
from shoal.evaluate.generate import Generation, generations
from shoal.evaluate.perplexity import n_batches, perplexity
from shoal.evaluate.speed import Speed, rounds_within, speed
from shoal.evaluate.tasks.benchmark import TaskFigures, task_figures
from shoal.evaluate.whole import WholeText, papers_stream, perplexity_of_blocks
from shoal.recipes.recipe import Recipe
from shoal.run.asked_tasks import Tasks, answer_tasks, tasks_against_teacher
from shoal.run.job import Inputs, open_inputs, refuse_unknown_tokens, window_of
from shoal.text.samples import Samples, text_ids, whole_samples
from shoal.words.progress import each_batch, numbered, tell

N_PROMPTS = 3
MOST_NEW_TOKENS = 32
LONGEST_TIMED_PROMPT = 512

SPEED_SHARE = 0.1
"""Most of a run that measuring speed may take; on a slow machine it measures in fewer rounds."""

LEAST_SPEED_SECONDS = 10.0
"""What it may take in any case: the run of a tiny model is over before a round is."""


def evaluate_alone(
    recipe: Recipe,
    *,
    tasks: Tasks | None = None,
    whole: bool = False,
    opening: Opening = Opening(),
) -> Measured:
    """Perplexity and cost of ``recipe.model`` on the evaluation slice, and its accuracy on tasks.

    Args:
        whole: read all of the text in its own order, not a slice of it, and measure the perplexity as papers state it, too.
    Raises:
        ValueError: everything that opening models and text and scoring tasks can meet.
    """
    inputs = open_inputs(recipe, opening)
    text = read_whole(inputs) if whole else None
    of_tasks, of_slice, of_whole = numbered(bool(tasks), True, whole)

    def ask() -> tuple[TaskFigures, ...]:
        tokenizer, window = inputs.opened.need_tokenizer(), window_of(inputs.view.config)
        answers = answer_tasks(inputs.view, tasks or Tasks(), tokenizer=tokenizer, window=window)
        return tuple(task_figures(one, seed=recipe.seed) for one in answers)

    with of_tasks:
        # Tasks come first: one may hold an item that cannot be scored.
        scored = inputs.workers.from_first(ask) if tasks else ()
    start = inputs.evaluation.start
    stream_T, stride = token_stream(inputs.batches(inputs.evaluation), start=start), usual_stride(inputs.length, start)
    total = n_batches(len(stream_T), window=inputs.length, stride=stride, batch_size=inputs.batch_size, n_start=len(start))
    with of_slice:
        found = perplexity(
            inputs.view,
            stream_T,
            window=inputs.length,
            stride=stride,
            start=start,
            batch_size=inputs.batch_size,
            after_batch=each_batch("perplexity", total),
            workers=inputs.workers,
        )
    figures = Figures(name=inputs.opened.name, cost=cost(inputs.view, context=inputs.length), perplexity=found)
    with of_whole:
        papers = None if text is None else as_papers(inputs, inputs.view, text, who="blocks")
    return Measured(model=figures, tasks=scored, whole=papers, provenance=inputs.provenance(inputs.evaluation))


def evaluate_pair(
    recipe: Recipe,
    student: str,
    *,
    tasks: Tasks | None = None,
    whole: bool = False,
    opening: Opening = Opening(),
) -> Evaluation:
    """A saved student against the teacher ``recipe.model``.

    Args:
        whole: as for :func:`evaluate_alone`.
        tasks: opened by :func:`shoal.run.asked_tasks.open_tasks`; asked of both models.
    Raises:
        ValueError: other tokens or a shorter window than the text needs, and everything that opening models and text can meet.
    """
    inputs = open_inputs(recipe, opening.in_memory())
    other = open_model(student, inputs.opened.opening)
    view = DecoderView(other.model)
    _refuse_other_tokens(inputs, other, view)
    text = read_whole(inputs) if whole else None
    of_tasks, of_slice, of_whole = numbered(bool(tasks), True, whole)
    with of_tasks:  # Tasks come first, because one may hold an item that cannot be scored.
        scored = inputs.workers.from_first(lambda: tasks_against_teacher(inputs, view, tasks)) if tasks else None
    with of_slice:
        found = against_teacher(inputs, view)
    both = (("teacher", inputs.view), ("student", view))
    with of_whole:
        papers = text and tuple(as_papers(inputs, one, text, who=f"{who}, blocks") for who, one in both)
    return found.model_copy(update={"tasks": scored, "whole": papers})


@dataclass(frozen=True)
class WholeTokens:
    """All of a text as tokens, without start tokens, and its number of characters."""

    ids_T: Tensor
    n_characters: int


def read_whole(inputs: Inputs) -> WholeTokens:
    """All of the text, tokenised in one piece; what is measured on ``inputs.evaluation`` reads all of it from now on.

    Raises:
        ValueError: a mixture, less text than one sample, or unknown tokens.
    """

    def read() -> tuple[WholeTokens, Samples]:
        assert inputs.corpus is not None
        tokenizer, text = inputs.opened.need_tokenizer(), inputs.corpus.whole()
        samples = whole_samples(text, tokenizer, length=inputs.length, data=inputs.corpus.name)
        refuse_unknown_tokens(samples.ids_NT, inputs.opened)
        return WholeTokens(torch.from_numpy(text_ids(text, tokenizer)), len(text)), samples

    tokens, samples = inputs.workers.from_first(read)
    vars(inputs).update(evaluation=samples)
    return tokens


def as_papers(inputs: Inputs, view: DecoderView, text: WholeTokens, *, who: str) -> WholeText:
    """A model's perplexity over all of a text as papers state it."""
    found = perplexity_of_blocks(
        view,
        papers_stream(text.ids_T, inputs.evaluation.start, length=inputs.length),
        length=inputs.length,
        batch_size=inputs.batch_size,
        step=partial(tell, who),
        workers=inputs.workers,
    )
    return WholeText(n_tokens=len(text.ids_T), n_characters=text.n_characters, blocks=found)


def _refuse_other_tokens(inputs: Inputs, student: Opened, view: DecoderView) -> None:
    """Raises ValueError where the student cannot read the teacher's samples as the teacher does."""
    # A student saved without a tokenizer reads with that of the teacher.
    why = student.tokenizer and other_tokenizer(inputs.opened.need_tokenizer(), student.tokenizer)
    if why:
        raise ValueError(
            f"{student.name} cannot be held against {inputs.opened.name}: {why}; give the teacher it was made from, "
            "or see both side by side with `shoal compare`"
        )
    refuse_other_vocabulary(inputs.view, view)
    window = window_of(view.config)
    if window is not None and inputs.length > window:
        raise ValueError(
            f"samples of {inputs.length} tokens are longer than the window of {student.name}; give --length {window} or less"
        )


def against_teacher(inputs: Inputs, student: DecoderView | Student, *, plain: Student | None = None) -> Evaluation:
    """Everything that is measured: quality and cost; of a student that is a model of its own also generations and speed, unless
    the teacher's layers are on disk, which would be read for every token.

    Args:
        plain: the same cut without repair, for the table.
    """
    found = compare(
        inputs.view,
        student,
        inputs.batches(inputs.evaluation),
        provenance=inputs.provenance(inputs.evaluation),
        start=inputs.evaluation.start,
        plain=plain,
        progress=partial(tell, "evaluate"),
        workers=inputs.workers,
    )
    if isinstance(student, Student) or inputs.is_streamed:
        return found
    # By one process: the others would slow it down. Last, because speed may take a share of all that was before.
    written, timed = inputs.workers.from_first(lambda: _run_models(inputs, student))
    return found.model_copy(update={"generations": written, "speed": timed})


def _run_models(inputs: Inputs, student: DecoderView) -> tuple[tuple[Generation, ...], Speed | None]:
    """Both models as their users run them: what they write and, where the recipe asks for it, how fast."""
    n_new = max(1, min(MOST_NEW_TOKENS, inputs.length // 4))
    texts = prompts(inputs)
    tell("generate", 0, len(texts))
    written = generations(
        inputs.view.model,
        student.model,
        tokenizer=inputs.opened.need_tokenizer(),
        prompts=texts,
        max_new_tokens=n_new,
        progress=partial(tell, "generate"),
    )
    if placement(inputs.view.model) or placement(student.model):
        tell("speed is left out: a model on several cards is timed by the engine that serves it", 1, 1)
        return written, None
    return written, _timed(inputs, student, n_new) if inputs.recipe.speed else None


def _timed(inputs: Inputs, student: DecoderView, n_new: int) -> Speed | None:
    """Speed in as many rounds as a tenth of the run has room for; None where that is not one."""
    workload = {"prompt_length": max(1, min(LONGEST_TIMED_PROMPT, inputs.length - n_new)), "new_tokens": n_new}
    so_far = time.monotonic() - inputs.opened_at
    seconds = max(LEAST_SPEED_SECONDS, so_far * SPEED_SHARE / (1 - SPEED_SHARE))
    tell("try how fast it is", 0, 1)
    rounds = rounds_within(seconds, inputs.view.model, **workload)
    if rounds == 0:
        tell(f"speed is left out: it takes more than {SPEED_SHARE:.0%} of the run", 1, 1)
        return None
    return speed(inputs.view, student, rounds=rounds, **workload)


def prompts(inputs: Inputs) -> list[str]:
    """Openings of evaluation samples, as text."""
    n_tokens = max(1, min(24, inputs.length // 4))
    rows = inputs.evaluation.ids_NT[:N_PROMPTS, :n_tokens]
    tokenizer: Any = inputs.opened.need_tokenizer()
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    return [text for text in texts if text]
