"""Healing methods at equal tokens, each at its own tuned learning rate: KL and perplexity in several domains, time, memory.

    python benchmarks/heal.py MODEL --train-text train.txt.gz --domain books=val.txt --drop 6 --tokens 100000 --work DIR

One cell is a method, an objective, a start (the plain cut, or the cut behind the default repair) and a number of tokens. Every
cell runs in a process of its own, so that its peak memory is its own, and is written to `--out` as soon as it is done; cells
that stand there are not run again. All cells share the cut, the text, its order and the selection text, which chooses both the
learning rate (`lr: auto`) and the step. `streamline` trains LLM-Streamline's inherited layer in place of a span of one layer
more, so that students have as many layers; its rate is the best of three around the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shoal.engine.open import load_strictly, open_model
from shoal.recipes.recipe_file import load_recipe
from shoal.run.compress import compress
from shoal.run.job import versions
from shoal.text import open_corpus
from shoal.train.heal.config import HealConfig
from shoal.train.heal.merge import measure, merge_pupil
from shoal.train.heal.teachers import RunningTeacher
from shoal.train.heal.text_rows import TextRows
from shoal.train.heal.train import Lesson, open_pupil, train

HERE = Path(__file__).parent
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "dora": {"method": "lora", "variant": "dora"},
    "partial": {"method": "partial", "head": "keep"},  # the head of the models measured here is tied
    "full": {"method": "full"},
    "norms": {"method": "norms"},
}
OBJECTIVES = {"text": "next_token", "kd": "forward_kl"}
STARTS = {"plain": "none", "repaired": "auto"}
RATES = (1 / 3, 1.0, 3.0)  # of streamline, times the default


def cells(tokens: int) -> list[str]:
    """Names of all cells of one number of tokens, in the order in which they are run: what is most asked for comes first."""
    order = ("lora", "full", "streamline", "qlora", "partial", "norms", "dora")
    made = [f"{m}:{o}:{s}:{tokens}" for s in STARTS for o in ("kd", "text") for m in order if m != "streamline"]
    return [made[0], made[1], f"streamline:hidden:plain:{tokens}", *made[2:], f"streamline:kd:plain:{tokens}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train-text", required=True, help="for fit, training and selection")
    parser.add_argument("--domain", action="append", required=True, metavar="NAME=FILE", help="text of the measures")
    parser.add_argument("--drop", default="6")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--samples", type=int, default=64, help="of each domain's measure")
    parser.add_argument("--selection", type=int, default=24, help="samples that choose rate and step")
    parser.add_argument("--fit-tokens", type=int, default=100_000, help="that the repair of the second start reads")
    parser.add_argument("--work", type=Path, required=True, help="folder of the students")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "heal.json")
    parser.add_argument("--cell", help="run this one alone, in this process")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no cell after this time")
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args, args.cell)))
        return
    started = time.monotonic()
    found = json.loads(args.out.read_text()) if args.out.exists() else {"versions": versions(), "cells": {}}
    for name in ["starts:::0", *cells(args.tokens)]:
        if name in found["cells"] or time.monotonic() - started > args.seconds:
            continue
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--cell", name], capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        found["cells"][name] = json.loads(done.stdout.strip().splitlines()[-1])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, done.stdout.strip().splitlines()[-1][:300], file=sys.stderr)


def run_cell(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One row of the table."""
    method, objective, start, tokens = name.split(":")
    teacher = open_model(args.model)
    judges = {}
    for domain, file in (one.split("=", 1) for one in args.domain):
        samples = open_corpus(file, teacher.tokenizer).samples("evaluation", n=args.samples, length=args.length, fewest=8)
        judges[domain] = Lesson(TextRows.of(samples), TextRows.of(samples), RunningTeacher(teacher.model))
    if method == "starts":
        folders = {s: start_folder(args, s) for s in STARTS}
        rows = {s: figures(load_strictly(folder), judges) for s, folder in folders.items()}
        return {"teacher": figures(teacher.model, judges), **rows}
    began = time.monotonic()
    if method == "streamline":
        row, model = streamline(args, objective, int(tokens))
    else:
        row, model = healed(args, teacher, METHODS[method], OBJECTIVES[objective], start, int(tokens))
    row |= {"seconds": round(time.monotonic() - began, 1), "domains": figures(model, judges)}
    row["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return row


def figures(model: Any, judges: dict[str, Lesson]) -> dict[str, dict[str, float]]:
    """KL to the teacher and perplexity in every domain."""
    found = {name: measure(model, judge, batch_size=8) for name, judge in judges.items()}
    return {name: {"kl": round(one["kl"], 5), "perplexity": round(math.exp(one["nll"]), 3)} for name, one in found.items()}


def base_recipe(args: argparse.Namespace, **changes: Any) -> Any:
    text = {"sources": [args.train_text], "length": args.length, "selection": args.selection, "evaluation": 8}
    given = {"model": args.model, "text": text, "drop": args.drop, "guard": 1, "fit": {"tokens": args.fit_tokens}}
    return load_recipe("default", {**given, **changes})


def start_folder(args: argparse.Namespace, start: str) -> Path:
    """The checkpoint that healing starts from; both starts lack the same layers."""
    repair = STARTS[start]
    return compress(base_recipe(args, repair=repair, replace="none"), args.work / f"start-{start}").model


def healed(
    args: argparse.Namespace, teacher: Any, changes: dict[str, Any], objective: str, start: str, tokens: int
) -> tuple[dict[str, Any], Any]:
    path = start_folder(args, start)
    corpus = open_corpus(args.train_text, teacher.tokenizer)
    training = corpus.samples("training", n=-(-tokens // args.length), length=args.length)
    selection = corpus.samples("selection", n=args.selection, length=args.length)
    lesson = Lesson(TextRows.of(training), TextRows.of(selection), RunningTeacher(teacher.model))
    if objective == "next_token":
        lesson = dataclasses.replace(lesson, teacher=None)
    config = HealConfig(objective=objective, tokens=tokens // 1024 * 1024, batch=4, lr="auto", **changes)
    pupil = open_pupil(path, config, lesson)
    work = args.work / "cell"
    subprocess.run(["rm", "-rf", str(work)], check=True)
    began = time.monotonic()
    done = train(pupil, config, lesson, work)
    trained = time.monotonic() - began
    merging, model = merge_pupil(pupil, config, lesson, path)
    return {
        "lr": done.lr,
        "rates": [(one.lr, one.measure) for one in done.rates],
        "n_trainable": done.n_trainable,
        "n_tokens": done.n_tokens,
        "best_step": done.best_step,
        "n_steps": done.n_steps,
        "tokens_per_second": done.tokens_per_second,
        "seconds_with_search": round(trained, 1),
        "merge": merging.way,
        "merge_lost": merging.taken.lost if merging.taken else 0.0,
        "selection": [point.measure(done.decided_by) for point in done.curve],
    }, model


def streamline(args: argparse.Namespace, objective: str, tokens: int) -> tuple[dict[str, Any], Any]:
    """The inherited layer at three rates; the best on the selection text counts, its tokens alone."""
    polish = {"hidden": "hidden_mse", "kd": "forward_kl"}[objective]
    width = load_strictly(Path(args.model)).config.hidden_size
    tried = []
    for times in RATES:
        lr = min(8e-3, 0.8192 / width) * times
        training = {"tokens": tokens, "objective": polish, "lr": lr, "min_lr": lr / 10}
        recipe = base_recipe(args, replace="layer", repair="none", train=training)
        outcome = compress(recipe, args.work / f"streamline-{objective}-{times:.2f}")
        tried.append((outcome.trained[0].best.quality, lr, outcome))
    best, lr, outcome = min(tried, key=lambda one: one[0])
    result = outcome.trained[0]
    row = {
        "lr": lr,
        "rates": [(rate, kl) for kl, rate, _ in tried],
        "n_trainable": result.n_parameters,
        "n_tokens": result.n_tokens,
        "best_step": result.best_step,
        "n_steps": result.n_steps,
        "tokens_per_second": round(result.n_tokens / result.seconds, 1),
    }
    return row, load_strictly(outcome.model)


if __name__ == "__main__":
    main()
