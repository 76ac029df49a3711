"""Tasks of lm-eval, asked of students of a view: by name, from the user's own YAML, or made of a file of written answers.

Its tasks bring prompts, filters and metrics; :mod:`shoal.evaluate.tasks.lm_eval_model` answers. The accuracy is the first of
acc and exact_match that a task has, item by item right or wrong; a task without one (a mean of overlaps, a perplexity) is
refused. Where a task reads its texts with several filters, the first one counts. A file in the form of GSM8K is read as
lm-eval's own task of that name reads it.
"""

import difflib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.stability import Answer, Answers, Variant
from shoal.evaluate.tasks.answers import TaskAnswers, TaskFacts, brief, word_perplexity
from shoal.evaluate.tasks.lm_eval_model import NEW_TOKENS, Pair, Requests, as_lm
from shoal.evaluate.tasks.task_files import Task, TaskForm
from shoal.words.records import stable_hash

PREFIX = "local-"  # A file then cannot be mistaken for a task of lm-eval of the same name.
SHOT_SEED = 1234  # This is lm-eval's own default.
METRICS = ("acc", "exact_match")
FORMS_OF_OUTPUT: dict[str, tuple[TaskForm, Variant]] = {
    "multiple_choice": ("choice", "option_nll"),
    "loglikelihood": ("last_word", "last_word"),
    "generate_until": ("generation", "exact_match"),
}


@dataclass(frozen=True, eq=False)
class LoadedTask:
    """A loaded task of lm-eval under the name that people gave it."""

    name: str
    inner: Any


# -- loading -------------------------------------------------------------------------------------------------------------


def lm_eval_version() -> str:
    """Raises ImportError with the extra to install where lm-eval is missing."""
    try:
        import lm_eval
    except ImportError:
        raise ImportError("lm-eval is not installed: pip install 'shoal[eval]'") from None
    return str(lm_eval.__version__)


def named_tasks(names: Sequence[str], *, shots: int | None = None, include: Path | None = None) -> list[LoadedTask]:
    """Tasks, groups and tags by lm-eval's names.

    Args:
        shots: solved examples before each item; None: as many as the task says.
        include: folder of YAML tasks of the user's own.
    Raises:
        ValueError: an unknown name, or data that cannot be loaded (offline and not in the cache).
        ImportError: lm-eval is not installed.
    """
    lm_eval_version()
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise ValueError(f"no folder at {include}; --include needs a folder of lm-eval's YAML tasks")
    found: dict[str, Any] = {}
    with quiet():
        manager = TaskManager(include_path=str(include), include_defaults=False) if include is not None else None
        if manager is None or not set(names) <= set(manager.all_tasks):  # Reading the index of all tasks takes seconds.
            manager = TaskManager(include_path=None if include is None else str(include))
        known = set(manager.all_tasks)
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3)
                hint = f"did you mean {' or '.join(close)}? " if close else ""
                raise ValueError(f"lm-eval has no task {name!r}; {hint}`lm-eval ls tasks` lists them all")
            found |= _load(manager, name)
    for task in found.values():
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):  # A task that states 0 must not get examples, as in lm-eval.
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SHOT_SEED)
    return [LoadedTask(name, task) for name, task in found.items()]


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        tasks: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:  # The package datasets, its readers and the code of the task raise errors of any kind.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the data of task {name!r} cannot be loaded ({type(error).__name__}: {reason}); it needs the network once, "
            "then it is in the cache of datasets"
        ) from None
    return tasks


def written_task(task: Task, *, window: int | None = None) -> LoadedTask:
    """A file of written answers as a task of lm-eval. ``window``: an answer gets at most half of it."""
    lm_eval_version()
    import datasets
    from lm_eval import tasks as installed

    rows = [{"ctx": item.ctx, "answer": item.choices[0]} for item in task.items]
    if task.written == "gsm8k":
        own = yaml.safe_load((Path(installed.__file__).parent / "gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8"))
        config = {name: own[name] for name in ("generation_kwargs", "metric_list", "filter_list")}
    else:
        config = {
            "generation_kwargs": {"until": ["\n"], "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
            "process_results": lambda row, said: {"exact_match": float(said[0].strip() == row["answer"].strip())},
        }
    limit = NEW_TOKENS if window is None else max(1, min(NEW_TOKENS, window // 2))
    config["generation_kwargs"] |= {"max_gen_toks": limit}
    config |= {
        "task": PREFIX + task.name,
        "custom_dataset": lambda **unused: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        "output_type": "generate_until",
        "doc_to_text": lambda row: row["ctx"],
        "doc_to_target": lambda row: row["answer"],
    }
    with quiet():
        loaded = installed.TaskManager(include_defaults=False).load([config])["tasks"]
    return LoadedTask(task.name, loaded[PREFIX + task.name])


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only, and nothing on stdout, which is for the result."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- asking --------------------------------------------------------------------------------------------------------------


def ask_tasks(
    view: DecoderView,
    tasks: Sequence[LoadedTask],
    *,
    tokenizer: Any,
    students: Sequence[Student] = (TEACHER,),
    window: int | None = None,
    n_items: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[TaskAnswers]]:
    """Ask all students all tasks; choices and last words of all students in one reading.

    Args:
        students: overlays on the view. For written answers each is cut out of its model, sharing the weights.
        window: longest input in tokens; longer contexts are cut from the left and counted. None: no limit.
        n_items: the first items of every task; all unless given.
        progress: called with (done, in all), for every kind of request.
    Returns:
        Per student the answers to every task.
    Raises:
        ValueError: an item that cannot be scored, a task without an accuracy per item, scores that are NaN.
    """
    lm_eval_version()
    import lm_eval

    requests = Requests(view, students, tokenizer=tokenizer, window=window, progress=progress)
    by_name = {task.inner.config.task: task.inner for task in tasks}
    answers = []
    for member in range(len(students)):
        with quiet():
            # Not simple_evaluate: it sets the seeds of the process and lists every package that is installed.
            found = lm_eval.evaluate(
                lm=as_lm(requests, member),
                task_dict={"tasks": by_name, "groups": {}, "group_map": {}},
                limit=n_items,
                log_samples=True,
                bootstrap_iters=0,
            )
        means = {pair: score.mean_nll for pair, score in requests.scores[member].items()}
        samples = found["samples"]
        answers.append(
            [
                answers_of_samples(
                    samples[task.inner.config.task], task.name, task.inner.config.output_type, means=means, cut=requests.cut
                )
                for task in tasks
            ]
        )
    return answers


def answers_of_samples(
    samples: Sequence[dict[str, Any]], name: str, output: str, *, means: dict[Pair, float], cut: set[Pair]
) -> TaskAnswers:
    """The samples of one task under one model.

    Args:
        output: lm-eval's output_type.
        means: mean NLL over context and option, by request; of choices whose every request is there.
        cut: requests whose context did not fit.
    Raises:
        ValueError: no items, no accuracy per item, scores that are not finite.
    """
    if output not in FORMS_OF_OUTPUT:
        raise ValueError(f"task {name!r} measures {output}, not answers; `shoal eval --text` measures perplexity")
    if not samples:
        raise ValueError(f"task {name!r} has no items; there is nothing to compare")
    form, variant = FORMS_OF_OUTPUT[output]
    first_filter = samples[0]["filter"]
    rows = sorted((one for one in samples if one["filter"] == first_filter), key=lambda one: one["doc_id"])
    metric = next((one for one in METRICS if one in rows[0]["metrics"]), None)
    if metric is None:
        raise ValueError(
            f"task {name!r} has no accuracy per item, only {', '.join(rows[0]['metrics'])}; needed: {' or '.join(METRICS)}"
        )
    counted = Answers(name, variant, tuple(_answer(row, name=name, form=form, metric=metric) for row in rows))
    options = [len(one.scores) for one in counted.items]
    facts = TaskFacts(
        task=name,
        form=form,
        engine="lm-eval",
        metric=metric if first_filter == "none" else f"{metric}, {first_filter}",
        data_hash=stable_hash(form, sorted(one.key for one in counted.items)),
        n_items=len(rows),
        n_truncated=sum(any((ctx, str(what)) in cut for ctx, what in row["arguments"]) for row in rows),
        chance=sum(1 / n for n in options) / len(options) if form == "choice" else 0.0,
    )
    if form == "last_word":
        return TaskAnswers(facts, counted, word_perplexity=word_perplexity(counted))
    if form == "generation":
        return TaskAnswers(facts, counted)
    norm = None
    if "acc_norm" in rows[0]:
        norm = Answers(name, variant, tuple(_norm(row, one) for row, one in zip(rows, counted.items, strict=True)))
    return TaskAnswers(facts, counted, norm=norm, weighed=_weighed(rows, counted, means))


def _answer(row: dict[str, Any], *, name: str, form: TaskForm, metric: str) -> Answer:
    value = float(row[metric])
    if value not in (0.0, 1.0):
        raise ValueError(f"task {name!r} gives {metric} {value:g} to an item; only tasks of right or wrong can be compared")
    right, said = value == 1.0, row["filtered_resps"]
    # A document may come with several prompts; with the prompt's hash they stay apart.
    key, text = stable_hash(row["doc_hash"], row["prompt_hash"], row["target_hash"]), brief(str(row["arguments"][0][0]))
    if form == "generation":
        return Answer(key, text, 0, 0 if right else None, (0.0 if right else 1.0,), said=str(said[0]).strip())
    scores = tuple(-float(value) for value, _ in said)
    if form == "last_word":
        return Answer(key, text, 0, 0 if right else None, scores)
    gold, chosen = _gold(row), int(np.argmin(scores))
    if right:  # A task may accept several options; the model may have taken another one than `gold`.
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
    return Answer(answer.key, answer.text, answer.gold, answer.gold if row["acc_norm"] else None, answer.scores)


def _weighed(rows: Sequence[dict[str, Any]], counted: Answers, means: dict[Pair, float]) -> Answers | None:
    """The answers by mean NLL over context and option; None where a task asks otherwise than by context and option."""
    found = []
    for row, one in zip(rows, counted.items, strict=True):
        scores = [means.get((ctx, option)) for ctx, option in row["arguments"][: len(one.scores)]]
        known = tuple(score for score in scores if score is not None)
        if len(known) < len(one.scores):
            return None
        found.append(Answer(one.key, one.text, one.gold, int(np.argmin(known)), known))
    return Answers(counted.task, "mean_nll", tuple(found))
