"""lm-eval as the engine: its own tasks and local task files, asked of live or saved models.

Tasks are loaded once (:mod:`shoal.evaluate.tasks.harness_source`) and asked of any number of models. What lm-eval says about
every item becomes :class:`TaskAnswers` (:mod:`shoal.evaluate.tasks.harness_answers`), so that intervals, flips and averages are
computed as for the built-in scorer.
lm-eval keeps no likelihood of the context, so LLM-Streamline's stability is not known; agreement is
by ``option_nll``. Texts are written with the checkpoint's own ``generation_config``, as lm-eval does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.generate import model_of
from shoal.evaluate.tasks.answered import TaskAnswers
from shoal.evaluate.tasks.harness_answers import NEW_TOKENS, answers_of_samples
from shoal.evaluate.tasks.harness_source import HarnessTask, harness_version, quiet
from shoal.evaluate.tasks.tokenised import task_pairs


def answer_with_harness(
    view: DecoderView,
    tasks: Sequence[HarnessTask],
    *,
    tokenizer: Any,
    student: Student = TEACHER,
    window: int | None = None,
    n_items: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[TaskAnswers]:
    """Ask one model all tasks.

    Args:
        student: an overlay; it is cut out of the view's model, sharing its weights.
        window: longest input in tokens; longer contexts are cut from the left and counted. None: the model's own.
        n_items: the first items of every task; all unless given.
        batch_size: rows per forward, as lm-eval's.
        progress: called with (requests done, requests in all), for every kind of request.
    Raises:
        ValueError: an item that cannot be scored, a task without an accuracy per item, scores that are NaN.
    """
    harness_version()
    import lm_eval

    for task in tasks:
        _refuse_what_does_not_fit(task, tokenizer, window)
    model = model_of(view, student)
    with quiet():
        asked = _model_class(progress)(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # it gets a padding token
            batch_size=batch_size,
            max_length=window,
            device=str(view.device),
        )
        try:
            # not simple_evaluate: it sets the seeds of the process and lists every package that is installed
            by_name = {task.inner.config.task: task.inner for task in tasks}
            found = lm_eval.evaluate(
                lm=asked,
                task_dict={"tasks": by_name, "groups": {}, "group_map": {}},
                limit=n_items,
                log_samples=True,
                bootstrap_iters=0,
            )
        except AssertionError:  # how it refuses a request; it does not say which
            raise ValueError(
                f"lm-eval refuses an item of {', '.join(task.name for task in tasks)}: an option without tokens or longer than "
                f"the window of {asked.max_length}; leave it out, or take a model of a longer window"
            ) from None
    samples = found["samples"]
    return [
        answers_of_samples(
            samples[task.inner.config.task],
            name=task.name,
            file=task.file,
            output=task.inner.config.output_type,
            tokenizer=tokenizer,
            window=asked.max_length,
        )
        for task in tasks
    ]


def _model_class(progress: Callable[[int, int], None] | None) -> Any:
    """lm-eval's model of transformers, with our progress in place of its bars."""
    from lm_eval.models.huggingface import HFLM

    class Asked(HFLM):
        """Counts the rows that went through the model; rows that share a forward count at the end."""

        _done = _total = 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._counted(super().loglikelihood, requests)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._counted(super().generate_until, requests)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            return self._step(super()._model_call(inps, *args, **kwargs), len(inps))

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            return self._step(super()._model_generate(context, *args, **kwargs), len(context))

        def _counted(self, run: Any, requests: Any) -> Any:
            self._done, self._total = 0, len(requests)
            found = run(requests, disable_tqdm=True)
            return self._step(found, self._total - self._done)

        def _step(self, found: Any, n_rows: int) -> Any:
            self._done = min(self._done + n_rows, self._total)
            if progress is not None:
                progress(self._done, self._total)
            return found

    return Asked


def _refuse_what_does_not_fit(task: HarnessTask, tokenizer: Any, window: int | None) -> None:
    """Raises ValueError where lm-eval would stop with an assertion: options longer than the window, no room to write."""
    if task.file is not None and task.file.form != "generation":
        task_pairs(task.file, tokenizer=tokenizer, window=window)
    if task.inner.config.output_type == "generate_until" and window is not None:
        limit = (task.inner.config.generation_kwargs or {}).get("max_gen_toks", NEW_TOKENS)
        if limit >= window:
            raise ValueError(
                f"task {task.name!r} writes up to {limit} tokens, which leaves nothing of the model's window of {window} for "
                "the question; take a model of a longer window"
            )
