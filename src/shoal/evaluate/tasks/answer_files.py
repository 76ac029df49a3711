"""Answers from other evaluators' files: OpenCompass prediction folders and lm-eval sample logs.

OpenCompass (PPL mode): a folder with one JSON file per task, which is an object with one entry per item,
``{"0": {"label: A": {"PPL": ..}, .., "prediction": .., "gold": ..}, ..}``. PPL there is the mean negative log-likelihood per
token: variant ``mean_nll``.
lm-eval (``--log_samples``): ``samples_<task>_<date>.jsonl`` with ``target``, ``doc_hash`` and ``filtered_resps``, which is one
(log-likelihood, is greedy) per option. No likelihood of the context is there: variant ``option_nll``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.evaluate.stability import Answer, Answers, Stability, official_stability, stability
from shoal.words.reading import parse_json, read_bytes
from shoal.words.records import stable_hash

SAMPLE_LOG = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d{2}-\d{2}T[\d.:-]+)?\.jsonl")
LABEL = "label: "


@dataclass(frozen=True)
class FromFiles:
    """Stability of every task, and the number of LLM-Streamline's script where its inputs are those it was written for."""

    tasks: tuple[Stability, ...]
    official: dict[str, float]


def stability_of_files(teacher: Path, student: Path, *, seed: int = 0) -> FromFiles:
    """Compare two folders of OpenCompass predictions or of lm-eval sample logs.

    Raises:
        ValueError: what cannot be read, or other tasks or items in one than in the other.
    """
    ours, theirs = load_answers(teacher), load_answers(student)
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"{teacher} holds the tasks {', '.join(ours)}; {student} holds {', '.join(theirs)}: both need the same"
        )
    found = tuple(stability(ours[name], theirs[name], seed=seed) for name in ours)
    official = {
        name: official_stability(ours[name], theirs[name])
        for name in ours
        if ours[name].variant == "mean_nll"
        and [a.key for a in ours[name].items] == [b.key for b in theirs[name].items]  # The condition compares line by line.
    }
    return FromFiles(found, official)


def load_answers(folder: Path | str) -> dict[str, Answers]:
    """Every task of a folder, by name; the kind of file tells the evaluator.

    Raises:
        ValueError: no such folder, a model, no readable file, both kinds, or two logs of one task (all in one line).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}; give OpenCompass predictions or lm-eval sample logs")
    if (folder / "config.json").exists() or (folder / "run.json").exists():
        raise ValueError(
            f"{folder} is a model or a run, and what is compared here are the answers that another evaluator wrote; Shoal asks "
            "models itself: shoal compare TEACHER STUDENT --task FILE.jsonl"
        )
    logs = sorted(path for path in folder.rglob("samples_*.jsonl"))
    predictions = sorted(path for path in folder.glob("*.json") if not path.name.startswith("results"))
    if logs and predictions:
        raise ValueError(f"{folder} holds sample logs and prediction files ({predictions[0].name}); keep them apart")
    if not logs and not predictions:
        raise ValueError(f"{folder} has neither samples_*.jsonl (lm-eval) nor *.json (OpenCompass predictions)")
    read: Callable[[Path], Answers] = read_sample_log if logs else read_predictions
    found: dict[str, Answers] = {}
    for path in logs or predictions:
        answers = read(path)
        if answers.task in found:
            raise ValueError(f"{folder} holds two logs of task {answers.task!r} ({path.name} is one); keep the one you mean")
        found[answers.task] = answers
    return found


def read_predictions(path: Path | str) -> Answers:
    """One OpenCompass prediction file, in the order of its items.

    Raises:
        ValueError: not such a file; the line names the item.
    """
    path = Path(path)
    content = parse_json(read_bytes(path), str(path))
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} has no items; OpenCompass predictions are an object with one entry per item")
    return Answers(path.stem, "mean_nll", tuple(_prediction(path, name, item) for name, item in content.items()))


def _prediction(path: Path, name: str, item: Any) -> Answer:
    where = f"{path}, item {name!r}"
    if not isinstance(item, dict):
        raise ValueError(f"{where}: needs an object, got {str(item)[:40]!r}")
    labels = [key.removeprefix(LABEL) for key in item if key.startswith(LABEL)]
    for field in ("prediction", "gold"):
        if field not in item:
            raise ValueError(f"{where}: {field!r} is missing; score in PPL mode and keep the references")
        if str(item[field]) not in labels:
            raise ValueError(f"{where}: {field} {item[field]!r} is not one of the labels {', '.join(labels) or '(none)'}")
    options = [item[LABEL + label] for label in labels]
    scores = []
    for label, option in zip(labels, options, strict=True):
        value = option.get("PPL") if isinstance(option, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}: label {label!r} has no number 'PPL'; generation results cannot be compared here")
        scores.append(float(value))
    inputs = [str(option.get("testing input", "")) for option in options]
    place = inputs if any(inputs) else name  # Without the texts, only its number identifies an item.
    gold = labels.index(str(item["gold"]))
    return Answer(
        key=stable_hash(place, labels, gold),
        text=" ".join(inputs[gold][-80:].split()) or f"item {name}",
        gold=gold,
        chosen=labels.index(str(item["prediction"])),
        scores=tuple(scores),
    )


def read_sample_log(path: Path | str) -> Answers:
    """One lm-eval sample log of a multiple-choice task; the answer is acc's, the highest log-likelihood.

    Raises:
        ValueError: not such a file, or a generation task; the message names the line.
    """
    path = Path(path)
    name = SAMPLE_LOG.fullmatch(path.name)
    task = name["task"] if name else path.stem
    lines = [(n, line) for n, line in enumerate(read_bytes(path).decode(errors="replace").split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no samples")
    return Answers(task, "option_nll", tuple(_sample(f"{path}, line {n}", line) for n, line in lines))


def _sample(where: str, line: str) -> Answer:
    row = parse_json(line, where)
    for field in ("filtered_resps", "target", "doc_hash"):
        if not isinstance(row, dict) or field not in row:
            raise ValueError(f"{where}: {field!r} is missing; lm-eval writes it with --log_samples")
    options = row["filtered_resps"]
    if not isinstance(options, list) or not all(isinstance(one, list) and len(one) == 2 for one in options):
        raise ValueError(
            f"{where}: needs one (log-likelihood, is greedy) per option; only multiple-choice tasks can be compared"
        )
    try:
        scores, gold = tuple(-float(value) for value, _ in options), int(row["target"])
    except (TypeError, ValueError):
        raise ValueError(f"{where}: log-likelihoods and target need numbers, got {str(options)[:60]}") from None
    text = " ".join(str(row.get("doc", ""))[:80].split())
    # A document may come with several prompts; the prompt's hash keeps them apart.
    key = stable_hash(row["doc_hash"], row.get("prompt_hash"), gold, len(scores))
    return Answer(key=key, text=text, gold=gold, chosen=int(np.argmin(scores)) if scores else None, scores=scores)
