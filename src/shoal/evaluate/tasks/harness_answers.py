"""What lm-eval says about every item of a task, as answers.

The accuracy is the first of acc and exact_match that the task has, item by item right or wrong; a task without one (a mean of
overlaps, a perplexity) is refused. Where a task reads its texts with several filters, the first one counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shoal.evaluate.stability import Answer, Answers, Variant
from shoal.evaluate.tasks.answered import TaskAnswers
from shoal.evaluate.tasks.exact_match import written_answer
from shoal.evaluate.tasks.task_files import Task, TaskForm
from shoal.evaluate.tasks.tokenised import encode_prompt, n_cut
from shoal.words.records import stable_hash

NEW_TOKENS = 256  # lm-eval's own limit of a written text where a task names none
METRICS = ("acc", "exact_match")
FORMS_OF_METRICS: dict[str, tuple[TaskForm, Variant]] = {
    "multiple_choice": ("choice", "option_nll"),
    "loglikelihood": ("last_word", "last_word"),
    "generate_until": ("generation", "exact_match"),
}


def answers_of_samples(
    samples: Sequence[dict[str, Any]], *, name: str, file: Task | None, output: str, tokenizer: Any, window: int
) -> TaskAnswers:
    """The samples of one task under one model.

    Args:
        file: the local task, whose items the samples are in the order of ``doc_id``; None for a task of lm-eval's own.
        output: lm-eval's output_type.
        window: in tokens; contexts that did not fit are counted.
    Raises:
        ValueError: no items, no accuracy per item, scores that are not finite.
    """
    if output not in FORMS_OF_METRICS:
        raise ValueError(f"task {name!r} measures {output}, not answers; `shoal eval --text` measures perplexity")
    if not samples:
        raise ValueError(f"task {name!r} has no items; there is nothing to compare")
    first_filter = samples[0]["filter"]
    rows = sorted((one for one in samples if one["filter"] == first_filter), key=lambda one: one["doc_id"])
    form, variant = FORMS_OF_METRICS[output]
    metric = next((one for one in METRICS if one in rows[0]["metrics"]), None)
    if metric is None:
        raise ValueError(
            f"task {name!r} has no accuracy per item, only {', '.join(rows[0]['metrics'])}; needed: {' or '.join(METRICS)}"
        )
    counted = tuple(_answer(row, name=name, form=form, metric=metric, file=file) for row in rows)
    last_words = [one.scores[0] for one in counted] if form == "last_word" else []
    norm = tuple(_norm(row, answer) for row, answer in zip(rows, counted, strict=True)) if "acc_norm" in rows[0] else None
    options = [len(one.scores) for one in counted]
    return TaskAnswers(
        task=name,
        form=form,
        engine="lm-eval",
        metric=metric if first_filter == "none" else f"{metric}, {first_filter}",
        data_hash=stable_hash(form, sorted(one.key for one in counted)),
        chance=sum(1 / n for n in options) / len(options) if form == "choice" else 0.0,
        n_truncated=sum(_is_cut(row, output, tokenizer, window) for row in rows),
        counted=Answers(name, variant, counted),
        norm=None if norm is None or form != "choice" else Answers(name, variant, norm),
        word_perplexity=_perplexity(last_words) if last_words else None,
    )


def _answer(row: dict[str, Any], *, name: str, form: TaskForm, metric: str, file: Task | None) -> Answer:
    right = _is_right(row, name, metric)
    said = row["filtered_resps"]
    item = None if file is None else file.items[row["doc_id"]]
    text = " ".join((item.ctx if item is not None else str(row["arguments"][0][0]))[-80:].split())
    if form == "generation":
        if item is not None and file is not None and file.writing is not None:
            return written_answer(item, file.writing.answer(str(said[0])))
        return Answer(_key(row), text, 0, 0 if right else None, (0.0 if right else 1.0,), said=str(said[0]).strip())
    key = item.key if item is not None else _key(row)
    scores = tuple(-float(value) for value, _ in said)
    if form == "last_word":
        return Answer(key, text, 0, 0 if right else None, scores)
    gold, chosen = _gold(row), int(np.argmin(scores))
    if right:  # one of several right options, perhaps
        chosen = gold
    return Answer(key, text, gold, None if chosen == gold and not right else chosen, scores)


def _gold(row: dict[str, Any]) -> int:
    """The right option, the first of several; tasks write it as an index or as its text. It may not depend on the model."""
    target, options = row["target"], [str(option).strip() for _, option in row["arguments"]]
    first = target[0] if isinstance(target, list) and target else target
    if isinstance(first, str) and first.strip() in options:
        return options.index(first.strip())
    return first if isinstance(first, int) and 0 <= first < len(options) else 0


def _norm(row: dict[str, Any], answer: Answer) -> Answer:
    """Right where acc_norm is; which option that was lies in the scores of ``answer``."""
    right = bool(row["acc_norm"])
    return Answer(answer.key, answer.text, answer.gold, answer.gold if right else None, answer.scores)


def _is_right(row: dict[str, Any], name: str, metric: str) -> bool:
    value = float(row[metric])
    if value not in (0.0, 1.0):
        raise ValueError(f"task {name!r} gives {metric} {value:g} to an item; only tasks of right or wrong can be compared")
    return value == 1.0


def _key(row: dict[str, Any]) -> str:
    # a document may come with several prompts; with the prompt's hash they stay apart
    return stable_hash(row["doc_hash"], row["prompt_hash"], row["target_hash"])


def _is_cut(row: dict[str, Any], output: str, tokenizer: Any, window: int) -> bool:
    """True where the context of a request was longer than its room in the window."""
    if output == "generate_until":
        context, options = row["arguments"][0]
        room = window - int(options.get("max_gen_toks", NEW_TOKENS))
        return len(encode_prompt(tokenizer, context)) > room
    return any(n_cut(tokenizer, context, option, window=window) > 0 for context, option in row["arguments"])


def _perplexity(nll: Sequence[float]) -> float:
    mean = math.fsum(nll) / len(nll)
    return math.exp(mean) if mean < 709.0 else math.inf
