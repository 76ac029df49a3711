"""The methods around cutting, at equal size and equal tokens: layers merged, sublayers left out, layers put in; KL, perplexity.

    OMP_NUM_THREADS=1 python benchmarks/around.py MODEL --train-text train.txt.gz --domain books=val.txt --drop 25% --work DIR

Resumable, cell by cell: a cell is one student, made by `shoal`'s own run in a folder of `--work` (which itself goes on where it
was stopped) and measured on text that nothing was chosen on; it is written to `--out` as soon as it is measured, and cells that
stand there are skipped. `--cells 1` measures the next one and stops, `--only WORD` takes cells whose name has the word,
`--seconds N` starts none after that time, `--tables` prints the file as Markdown. The most telling cells come first, so that a
run may be stopped anywhere. All cells share one process: its start, the teacher and the text of the measures are paid for once.

- `cut:` cells lack as many layers as `--drop` says, or sublayers of as many parameters, whatever made them: the default, plain
  cuts, merges by every rule and search, merges whose layer is then fitted (`refit`, `sweep`), and for each search the plain
  removal of the layers that its `keep_last` lets go of, with the same repair: what the merge itself is worth. `:paper` cells
  keep to their paper's threshold and the released programs' rule, so their size is what it leads to.
- `grow:` cells have the layers that `--to` says. `:start` is before any training; `:healed` is trained on `--tokens` of the
  training text as its paper has it. `grow:source` is the source trained for as many tokens, all of it and by LoRA.

A cell has its layers, its parameters, KL to the source and perplexity per domain, and its processor seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).parent
PAPER_THRESHOLDS = {"laco": 0.65, "sliding": 0.72}  # of Llama-2-7B in the first paper, of Llama-2-13B in the second's program
MERGED_BY = {"laco": "laco", "sliding": "sliding-merge"}

Changes = dict[str, Any]
Cell = Callable[[argparse.Namespace], tuple[str, Changes]]
"""The recipe of a cell and what differs from it."""


def merging(search: str, rule: str, repair: str = "none", threshold: float | None = None) -> Cell:
    """Merged layers; by the budget unless there is a threshold."""

    def cell(args: argparse.Namespace) -> tuple[str, Changes]:
        drop = "90%layers" if threshold is not None else args.drop
        how = {"rule": rule, "threshold": threshold}
        return MERGED_BY[search], {"drop": drop, "heal": None, "repair": repair, "merge": how}

    return cell


def removed_like(name: str, repair: str) -> Cell:
    """The plain removal of the layers that a merging let go of."""

    def cell(args: argparse.Namespace) -> tuple[str, Changes]:
        from shoal.edits.plan import Plan

        plan = args.work / folder_of(name) / "plan.json"
        if not plan.is_file():
            raise ValueError(f"{name} comes first")
        layers = ",".join(str(layer) for layer in Plan.load(plan).removed_layers)
        return "default", {"layers": layers, "repair": repair}

    return cell


def cutting(recipe: str, **changes: Any) -> Cell:
    """A recipe that removes layers."""
    return lambda args: (recipe, {"drop": args.drop, "heal": None, **changes})


def growing(recipe: str, *, is_healed: bool, init: str | None = None) -> Cell:
    """A recipe of growing, before or after its training."""

    def cell(args: argparse.Namespace) -> tuple[str, Changes]:
        grow: Changes = {"to": args.to} | ({"init": init} if init else {})
        return recipe, {"grow": grow, "heal": trained(args) if is_healed else None}

    return cell


def source_healed(method: str) -> Cell:
    """The source itself, trained for as long."""
    return lambda args: ("default", {"layers": "none", "repair": "none", "heal": {"method": method, **trained(args)}})


def trained(args: argparse.Namespace) -> Changes:
    """What all trainings share; the rate is the method's own, found by short runs where `--lr auto`."""
    return {"tokens": args.tokens, "objective": "next_token", "lr": args.lr, "warmup": 0.05}


def sublayers(repair: str) -> Cell:
    """Sublayers of as many parameters, one after the other by the distance of the distribution of the next token."""
    how = {"select": "greedy", "units": "sublayers", "guard": 1, "search": {"metric": "kl", "tokens": 2048}}
    return lambda args: ("default", {"drop": f"{args.drop}params", "repair": repair, **how})


def all_cells() -> dict[str, Cell]:
    """By name, in the order in which they are run: what each family is worth first, then its other rules."""
    greedy = {"select": "greedy", "guard": 1, "search": {"metric": "kl", "tokens": 2048}}
    found: dict[str, Cell] = {
        "cut:span": cutting("default", guard=1, repair="none"),
        "cut:span:sweep": cutting("default", guard=1, repair="sweep"),
        "cut:default": cutting("default"),
    }
    for search in MERGED_BY:
        found[f"cut:{search}:sum_diff"] = merging(search, "sum_diff")
        found[f"cut:{search}:keep_last"] = merging(search, "keep_last")
        found[f"cut:{search}:removed"] = removed_like(f"cut:{search}:keep_last", "none")
        found[f"cut:{search}:keep_last:sweep"] = merging(search, "keep_last", "sweep")
        found[f"cut:{search}:removed:sweep"] = removed_like(f"cut:{search}:keep_last", "sweep")
        found[f"cut:{search}:paper"] = merging(search, "keep_last", threshold=PAPER_THRESHOLDS[search])
    found |= {
        "cut:sublayers": sublayers("none"),
        "cut:sublayers:sweep": sublayers("sweep"),
        "cut:greedy": cutting("default", **greedy, repair="none"),
        "cut:greedy:sweep": cutting("default", **greedy, repair="sweep"),
    }
    for init in ("copy", "lesa", "mean", "interpolate"):
        recipe = {"copy": "solar", "lesa": "lesa"}.get(init, "grow")
        found[f"grow:{init}:start"] = growing(recipe, is_healed=False, init=init if recipe == "grow" else None)
    found["grow:source:full"] = source_healed("full")
    for recipe in ("llama-pro", "solar", "slayer", "lesa"):
        found[f"grow:{recipe}:healed"] = growing(recipe, is_healed=True)
    found["grow:source:lora"] = source_healed("lora")
    for search in MERGED_BY:
        found[f"cut:{search}:mean"] = merging(search, "mean")
        found[f"cut:{search}:mean:sweep"] = merging(search, "mean", "sweep")
        found[f"cut:{search}:keep_last:refit"] = merging(search, "keep_last", "refit")
        found[f"cut:{search}:removed:refit"] = removed_like(f"cut:{search}:keep_last", "refit")
    found["cut:deepest"] = cutting("default", select="deepest", guard=1, repair="none")
    return found


def folder_of(name: str) -> str:
    return name.replace(":", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train-text", required=True, help="for calibration, fits, training and selection")
    parser.add_argument("--domain", action="append", required=True, metavar="NAME=FILE", help="text of the measures")
    parser.add_argument("--drop", default="25%")
    parser.add_argument("--to", default="125%", help="layers of the grown models")
    parser.add_argument("--tokens", type=int, default=100_000, help="of every training")
    parser.add_argument("--lr", type=lambda text: text if text == "auto" else float(text), default=None)
    parser.add_argument("--fit-tokens", type=int, default=48_000)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--samples", type=int, default=64, help="of each domain's measure")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "around.json")
    parser.add_argument("--only", action="append", default=[], metavar="WORD")
    parser.add_argument("--cells", type=int, default=math.inf, help="most cells to measure")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else {"cells": {}}
    if not args.tables:
        run_all(args, found)
    print(tables(found))


def run_all(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Every cell that is asked for and not there yet."""
    from shoal.run.job import versions
    from shoal.words.records import write_atomically

    started, n, judge = time.monotonic(), 0, Judge(args)
    found["versions"], found["model"] = versions(), Path(args.model).name
    for name in ("source", *all_cells()):
        is_asked = all(word in name for word in args.only)
        if name in found["cells"] or not is_asked or n >= args.cells or time.monotonic() - started > args.seconds:
            continue
        try:
            row = run_cell(args, name, judge)
        except ValueError as reason:  # One cell needs it, the others do not.
            print(f"{name}: {str(reason)[:400]}", file=sys.stderr)
            continue
        n += 1
        found["cells"][name] = row
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, (json.dumps(found, indent=1) + "\n").encode())
        print(name, json.dumps(row)[:300], file=sys.stderr, flush=True)


def run_cell(args: argparse.Namespace, name: str, judge: Judge) -> dict[str, Any]:
    """One row of the table."""
    from shoal.engine.open import load_strictly
    from shoal.recipes.recipe_file import load_recipe
    from shoal.run.compress import compress

    model, row = judge.teacher.model, {}
    began = time.process_time()
    if name != "source":
        recipe, changes = all_cells()[name](args)
        text = {"sources": [args.train_text], "length": args.length, "evaluation": 8}
        fit = {} if changes.get("repair") == "none" else {"fit": {"tokens": args.fit_tokens}}
        given = {"model": args.model, "text": text, "speed": False, **fit, **changes}
        outcome = compress(load_recipe(recipe, given), args.work / folder_of(name))
        row = {"plan": str(outcome.plan), "method": outcome.plan.method}
        model = load_strictly(outcome.model)
    seconds = round(time.process_time() - began, 1)
    return row | {
        "layers": model.config.get_text_config(decoder=True).num_hidden_layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "domains": judge.domains(model),
    }


class Judge:
    """The teacher and the text of the measures, opened when a cell first needs them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @cached_property
    def teacher(self) -> Any:
        from shoal.engine.open import open_model

        return open_model(self.args.model)

    @cached_property
    def texts(self) -> dict[str, Any]:
        from shoal.text.corpus import open_corpus
        from shoal.train.heal.text_rows import TextRows

        n, length, tokenizer = self.args.samples, self.args.length, self.teacher.tokenizer
        files = dict(one.split("=", 1) for one in self.args.domain)
        return {
            domain: TextRows.of(open_corpus(file, tokenizer).samples("evaluation", n=n, length=length, fewest=8))
            for domain, file in files.items()
        }

    def domains(self, model: Any) -> dict[str, dict[str, float]]:
        """KL to the teacher and perplexity of a student, by domain."""
        from shoal.train.heal.merge import measure
        from shoal.train.heal.teachers import RunningTeacher
        from shoal.train.heal.train import Lesson

        figures = {}
        for domain, rows in self.texts.items():
            found = measure(model, Lesson(rows, rows, RunningTeacher(self.teacher.model)), batch_size=8)
            figures[domain] = {"kl": round(found["kl"], 5), "perplexity": round(math.exp(found["nll"]), 3)}
        return figures


def tables(found: dict[str, Any]) -> str:
    """The cells as Markdown: one table of cuts, one of growings, the source first in each."""
    cells = found["cells"]
    domains = list(next(iter(cells.values()), {"domains": {}})["domains"])
    head = [
        "student",
        "layers",
        "parameters",
        *[f"KL {one}" for one in domains],
        *[f"perplexity {one}" for one in domains],
        "s",
    ]
    lines = []
    for kind in ("cut", "grow"):
        rows = {name: row for name, row in cells.items() if name == "source" or name.startswith(kind)}
        if len(rows) < 2 and "source" in rows or not rows:
            continue
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for name, row in rows.items():
            kls = [f"{row['domains'][one]['kl']:.4f}" for one in domains]
            perplexities = [f"{row['domains'][one]['perplexity']:.2f}" for one in domains]
            figures = [str(row["layers"]), f"{row['parameters']:,}", *kls, *perplexities, f"{row['seconds']:.0f}"]
            lines.append(f"| {name.removeprefix(kind + ':')} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
