"""Tasks of lm-eval: by name, from the user's own YAML, or made of a local file, without a copy on disk and without the network.

Texts of a file are used as they stand; what a model writes is read as the file's form says.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.evaluate.tasks.exact_match import new_tokens
from shoal.evaluate.tasks.task_files import Task

PREFIX = "local-"  # so that a file cannot be mistaken for a task of lm-eval of the same name
SHOT_SEED = 1234  # lm-eval's own default


@dataclass(frozen=True, eq=False)
class HarnessTask:
    """A loaded task of lm-eval; ``file``: the local task it was made of."""

    name: str
    inner: Any
    file: Task | None = None


def harness_version() -> str:
    """Raises ImportError with the extra to install where lm-eval is missing."""
    try:
        import lm_eval
    except ImportError:
        raise ImportError("lm-eval is not installed: pip install 'shoal[eval]'") from None
    return str(lm_eval.__version__)


def harness_tasks(names: Sequence[str], *, shots: int | None = None, include: Path | None = None) -> list[HarnessTask]:
    """Tasks, groups and tags by lm-eval's names.

    Args:
        shots: solved examples before each item; None: as many as the task says.
        include: folder of YAML tasks of the user's own.
    Raises:
        ValueError: an unknown name, or data that cannot be loaded (offline and not in the cache).
        ImportError: lm-eval is not installed.
    """
    harness_version()
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise ValueError(f"no folder at {include}; --include needs a folder of lm-eval's YAML tasks")
    found: dict[str, Any] = {}
    with quiet():
        manager = TaskManager(include_path=str(include), include_defaults=False) if include is not None else None
        if manager is None or not set(names) <= set(manager.all_tasks):  # reading the index of all its tasks takes seconds
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
        if own is None or (shots is not None and own != 0):  # 0: the task must not have any, as lm-eval has it
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SHOT_SEED)
    return [HarnessTask(name, task) for name, task in found.items()]


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        tasks: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:  # whatever datasets, its readers and the task's own code raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the data of task {name!r} cannot be loaded ({type(error).__name__}: {reason}); it needs the network once, "
            "then it is in the cache of datasets"
        ) from None
    return tasks


def file_task(task: Task, *, window: int | None = None) -> HarnessTask:
    """A local task as one of lm-eval's. ``window``: written answers get at most half of it."""
    harness_version()
    import datasets
    from lm_eval.tasks import TaskManager

    rows = [{"ctx": item.ctx, "choices": list(item.choices), "gold": item.gold} for item in task.items]
    config: dict[str, Any] = {
        "task": PREFIX + task.name,
        "custom_dataset": lambda **unused: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        "doc_to_text": lambda row: row["ctx"],
    }
    if task.form == "choice":
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda row: row["choices"],
            "doc_to_target": lambda row: row["gold"],
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    elif task.form == "last_word":
        config |= {
            "output_type": "loglikelihood",
            "doc_to_target": lambda row: row["choices"][0],
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        }
    else:
        assert task.writing is not None
        limit = new_tokens(task.writing.most_tokens, window)
        config |= {
            "output_type": "generate_until",
            "doc_to_target": lambda row: row["choices"][0],
            "generation_kwargs": {"until": list(task.writing.stop), "max_gen_toks": limit, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        }
    with quiet():
        loaded = TaskManager(include_defaults=False).load([config])["tasks"]
    return HarnessTask(task.name, loaded[PREFIX + task.name], task)


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
