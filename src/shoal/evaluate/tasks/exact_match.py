"""Exact match: the model writes its answer, greedily, and the answer is the right one or it is not.

The prompt is the item's text; what is written ends at a stop string, at the end token or at the limit, and the answer is read
from it as :class:`shoal.evaluate.tasks.task_files.Writing` says. A prompt that leaves no room for the answer in the window
loses its beginning, as in lm-eval. A failure to write the form that is asked for counts as a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.evaluate.generate import greedy_texts
from shoal.evaluate.stability import Answer, Answers
from shoal.evaluate.tasks.answered import TaskAnswers
from shoal.evaluate.tasks.task_files import Task, TaskItem
from shoal.evaluate.tasks.tokenised import encode_prompt

TOKENS_PER_BATCH = 4096


def write_answers(
    model: Any,
    task: Task,
    *,
    tokenizer: Any,
    window: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> TaskAnswers:
    """Let a causal language model of transformers write the answers of a generation task.

    Args:
        window: prompt and answer together, in tokens; None: no limit.
        tokens_per_batch: prompts and new tokens of one batch, padding included.
        progress: called with (items done, items in all).
    Raises:
        ValueError: not a generation task, or a prompt without tokens (with its file and line).
    """
    writing = task.writing
    if writing is None:
        raise ValueError(f"{task.path} is a task of choices, not of written answers")
    limit = new_tokens(writing.most_tokens, window)
    prompts, n_truncated = [], 0
    for item in task.items:
        tokens = encode_prompt(tokenizer, item.ctx)
        if not tokens:
            raise ValueError(f"{task.path}, line {item.line}: the prompt has no tokens with this tokenizer")
        room = len(tokens) if window is None else window - limit
        n_truncated += len(tokens) > room
        prompts.append(tokens[-room:])
    written: list[Answer | None] = [None] * len(prompts)
    done = 0
    for index, text in greedy_texts(
        model, tokenizer, prompts, max_new_tokens=limit, stop=writing.stop, tokens_per_batch=tokens_per_batch
    ):
        item = task.items[index]
        written[index] = written_answer(item, writing.answer(text))
        done += 1
        if progress is not None:
            progress(done, len(prompts))
    return TaskAnswers(
        task=task.name,
        form=task.form,
        engine="built-in",
        metric="exact_match",
        data_hash=task.data_hash,
        chance=task.chance,
        n_truncated=n_truncated,
        counted=Answers(task.name, "exact_match", tuple(one for one in written if one is not None)),
    )


def new_tokens(most: int, window: int | None) -> int:
    """The limit of what is written: ``most``, but no more than half of the window, so that the prompt keeps the other half."""
    return most if window is None else max(1, min(most, window // 2))


def written_answer(item: TaskItem, said: str | None) -> Answer:
    """An answer that is right when it equals the item's gold."""
    right = said is not None and said == item.choices[item.gold]
    text = " ".join(item.ctx[-80:].split())
    return Answer(item.key, text, 0, 0 if right else None, (0.0 if right else 1.0,), said=said or "")
