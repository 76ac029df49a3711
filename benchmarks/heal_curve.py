r"""UIDL's figures: loss and a task against the removed share, cut alone and healed, and where each of them breaks.

    OMP_NUM_THREADS=1 python benchmarks/heal_curve.py MODEL --train-text train.txt.gz --domain books=val.txt --work DIR \
        --task sciq.jsonl

Source: arXiv 2403.17887, figures 1 and 3: the span of every length with the smallest angle, removed; then QLoRA on text.
For every number of ``--counts`` four students of one size: UIDL's cut and that cut healed, our repaired cut and that healed.
Healing is LoRA beside every map on the teacher's logits (``--method``, ``--objective``), ``--tokens`` at ``--times`` the
method's own rate. Resumable, cell by cell, as `heal.py`, whose texts, logits on disk and processes these are; ``--tables``
prints Markdown, ``--write PAGE`` puts it between the page's marks ``heal-curve.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import heal
from heal_tables import write_between

WAYS = {
    "uidl": {"by": "angular/last", "protect": [], "repair": "none", "replace": "none"},
    "ours": {"replace": "none"},
}


class CurveBench(heal.Bench):
    """As for the equal-token table, with a task."""

    def cell(self, n_out: int, way: str, *, is_healed: bool) -> dict[str, Any]:
        """Figures of one student."""
        from shoal.engine.open import load_strictly

        state = self.made(f"cut-{way}-{n_out}", drop=str(n_out), **WAYS[way])
        before, after = state.planned.before.parameters, state.planned.after.parameters
        row = {"share": round(1 - after / before, 4), "layers_out": list(state.planned.removed_layers)}
        model = load_strictly(state.model)
        if is_healed:
            more, model = self.heal(state.model, f"healed-{way}-{n_out}")
            row |= more
        return row | {"domains": self.figures(model), "right": self.right(model)}

    def heal(self, path: Path, name: str) -> tuple[dict[str, Any], Any]:
        from dataclasses import replace

        from shoal.train.heal.config import HealConfig
        from shoal.train.heal.merge import merge_pupil
        from shoal.train.heal.train import open_pupil, train

        args, work = self.args, self.args.work / name
        step, lesson = args.batch * args.length, self.lesson
        n_steps = args.tokens // step
        if args.objective == "text":
            lesson = replace(lesson, teacher=None)
        else:
            heal.apart(lambda: {"n": lesson.teacher.of_training.fill(self.opened.model, n_steps * args.batch)})
        config = HealConfig(
            objective=heal.OBJECTIVES[args.objective],
            tokens=n_steps * step,
            batch=args.batch,
            micro_batch=args.batch,
            eval_every=-(-n_steps // heal.VALIDATIONS),
            **heal.METHODS[args.method],
        )
        pupil = open_pupil(path, config, lesson)
        lr = args.times * pupil.method.learning_rate(pupil.hidden_size)
        done = train(pupil, config.model_copy(update={"lr": lr}), lesson, work)
        _, model = merge_pupil(pupil, done.best, config, lesson, path)
        shutil.rmtree(work)
        return {"lr": lr, "n_tokens": done.n_tokens, "best_step": done.best_step}, model

    def right(self, model: Any) -> dict[str, Any]:
        """Share of the items that a model gets right, of every task."""
        from shoal.engine.student import TEACHER
        from shoal.engine.view import DecoderView
        from shoal.evaluate.tasks.choice import score_task
        from shoal.run.asked_tasks import task_files
        from shoal.run.job import window_of

        view, found = DecoderView(model), {}
        for task in task_files(self.args.task, n_items=self.args.items):
            (scores,) = score_task(
                view, task, tokenizer=self.opened.tokenizer, students=[TEACHER], window=window_of(view.config)
            )
            right = [answer.is_right for answer in scores.counted.items]
            found[task.name] = {"right": sum(right), "items": len(right)}
        return found


def cells(args: argparse.Namespace) -> Iterator[str]:
    """The teacher, then every second number of layers, then those between: a run that is stopped early has all of the curve."""
    yield "0:teacher:cut"
    for counts in (args.counts[1::2], args.counts[::2]):
        for n_out in counts:
            yield from (f"{n_out}:{way}:{kind}" for way in args.ways for kind in ("cut", "healed"))


def main() -> None:
    args = parsed()
    found = json.loads(args.out.read_text()) if args.out.exists() else {"cells": {}}
    if args.tables or args.write:
        lines = list(tables(found))
        print("\n".join(lines)) if args.tables else write_between(args.write, args.out.name, lines)
        return
    started, bench = time.monotonic(), CurveBench(args, {})
    for name in cells(args):
        if name in found["cells"] or time.monotonic() - started > args.seconds:
            continue
        n_out, way, kind = name.split(":")

        def work(n_out: str = n_out, way: str = way, kind: str = kind) -> dict[str, Any]:
            if way == "teacher":
                return {"share": 0.0, "domains": bench.figures(bench.opened.model), "right": bench.right(bench.opened.model)}
            return bench.cell(int(n_out), way, is_healed=kind == "healed")

        row = heal.apart(work)
        if row is None:
            print(f"{name}: failed, see above", file=sys.stderr)
            continue
        found["cells"][name] = row
        found |= {"versions": bench.versions, "text": bench.text, "model": Path(args.model).name}
        found |= {"method": args.method, "objective": args.objective, "tokens": args.tokens, "times": args.times}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.monotonic() - started:6.0f} s  {name}  {json.dumps(row['domains'])} {row['right']}", file=sys.stderr)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser.add_argument("model")
    parser.add_argument("--train-text", required=True)
    parser.add_argument("--domain", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--task", action="append", default=[], type=Path, metavar="FILE")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--counts", type=numbers, default=list(range(1, 13)), help="layers out")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--method", default="lora", choices=[name for name in heal.METHODS if name != "streamline"])
    parser.add_argument("--objective", default="kd", choices=["kd", "text"])
    parser.add_argument("--times", type=float, default=1.0, help="the rate, in multiples of the method's own")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--pool", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--selection", type=int, default=16)
    parser.add_argument("--fit-tokens", type=int, default=100_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=heal.HERE / "results" / "heal-curve.json")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args()
    args.drop = "1"  # of recipes that state none
    return args


def tables(results: dict[str, Any]) -> Iterator[str]:
    """A table for each domain and each task, rows by removed layers and columns by student; and the transitions."""
    found = {tuple(name.split(":")): row for name, row in results["cells"].items()}
    teacher = found[("0", "teacher", "cut")]
    columns = [(way, kind) for way in WAYS for kind in ("cut", "healed") if any(key[1:] == (way, kind) for key in found)]
    counts = sorted({int(key[0]) for key in found} - {0})
    names = {way: {"uidl": "UIDL's cut", "ours": "our repaired cut"}[way] for way in WAYS}
    head = " | ".join(f"{names[way]}{', healed' if kind == 'healed' else ''}" for way, kind in columns)
    yield f"\n{results['model']}, healed by {results['method']} on {results['objective']}, {results['tokens']:,} tokens."
    figures = [(f"perplexity, {d}", lambda row, d=d: row["domains"][d]["perplexity"], 1) for d in teacher["domains"]]
    figures += [(f"KL, {d}", lambda row, d=d: row["domains"][d]["kl"], 3) for d in teacher["domains"]]
    figures += [
        (f"{t}, % right", lambda row, t=t: 100 * row["right"][t]["right"] / row["right"][t]["items"], 1)
        for t in teacher["right"]
    ]
    for said, value, digits in figures:
        yield f"\n{said} (teacher {value(teacher):.{digits}f}):\n"
        yield f"| layers out | share | {head} |"
        yield "|---:|---:|" + "---:|" * len(columns)
        for n in counts:
            rows = [found.get((str(n), way, kind)) for way, kind in columns]
            share = next(row["share"] for row in rows if row is not None)
            yield (
                f"| {n} | {100 * share:.1f} % | "
                + " | ".join("" if r is None else f"{value(r):.{digits}f}" for r in rows)
                + " |"
            )
    yield "\nTransition (between which two numbers of layers the loss rises most per layer):\n"
    for domain in teacher["domains"]:
        for way, kind in columns:
            losses = {0: math.log(teacher["domains"][domain]["perplexity"])}
            losses |= {
                n: math.log(found[(str(n), way, kind)]["domains"][domain]["perplexity"])
                for n in counts
                if (str(n), way, kind) in found
            }
            rise, a, b = max(((losses[b] - losses[a]) / (b - a), a, b) for a, b in pairwise(sorted(losses)))
            healed = ", healed" if kind == "healed" else ""
            yield f"- {domain}, {names[way]}{healed}: {a} -> {b}, {rise:+.3f} nats per token and layer"


if __name__ == "__main__":
    main()
