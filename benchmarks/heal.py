"""Healing methods at equal tokens, each at a learning rate of its own: KL and perplexity in several domains, time, memory.

    OMP_NUM_THREADS=1 python benchmarks/heal.py MODEL --train-text train.txt.gz --domain books=val.txt --drop 6 --work DIR

Resumable, cell by cell: a cell is a method, an objective, a start (the plain cut, or the cut behind the repair) and a number of
tokens. It is written to ``--out`` as soon as it is done, and cells that stand there are not run again; within a cell a training
goes on where it was stopped. Cells run in the order of what they tell: all methods on logits at the first number of
``--tokens``, from the plain and from the repaired cut, then on text, and then the ``--best`` of them at the larger numbers.
``--seconds N`` starts none after that time, ``--list`` names the cells, ``--tables`` prints Markdown, and ``--write PAGE`` puts
it between the page's marks.

- All cells share the cut, the text, its order and the selection text, which chooses both the learning rate (short trainings at
  rates a factor of three apart, and on beyond the best end) and the step. The rate of a method's first cell is that of its
  larger ones; ``--rates-like FILE`` takes the multiples of the method's own rate from another model's file, so that a model
  too large for the search is spared it.
- ``streamline`` trains LLM-Streamline's inherited layer in place of a span of one layer more, so that students have as many
  layers; ``hidden`` is its paper's objective.
- The teacher's logits are computed once for all cells and kept on disk in fp16. ``seconds`` are of the training at the chosen
  rate, without validations and without the teacher, whose speed is in the row of the starts; ``peak_bytes`` are what the
  process held above what it held before, until the training's end.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from heal_tables import tables, write_between

HERE = Path(__file__).parent
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "streamline": {},
    "partial": {"method": "partial", "head": "keep"},  # The head of the models measured here is tied.
    "qlora": {"method": "qlora"},
    "norms": {"method": "norms"},
    "dora": {"method": "lora", "variant": "dora"},
}
OBJECTIVES = {"kd": "forward_kl", "text": "next_token", "hidden": "hidden_mse"}
STARTS = ("plain", "repaired")
VALIDATIONS = 4
Row = dict[str, Any]


def cells(args: argparse.Namespace, found: dict[str, Row]) -> Iterator[str]:
    """Names of all cells in the order in which they are run; those with more tokens follow from the ones before."""
    first, *more = args.tokens
    for objective in args.objectives:
        for start in args.starts:
            for method in args.methods:
                if method == "streamline" and objective == "kd":
                    yield f"streamline:hidden:{start}:{first}"
                yield f"{method}:{objective}:{start}:{first}"
    for tokens in more:
        for start in args.starts:
            yield from (f"{method}:kd:{start}:{tokens}" for method in best(args, found, start, first)[: args.best])


def best(args: argparse.Namespace, found: dict[str, Row], start: str, tokens: int) -> list[str]:
    """Methods by the KL of their cells on logits, lowest first; none while one of the cells is missing."""
    names = {method: f"{method}:kd:{start}:{tokens}" for method in args.methods}
    if any(name not in found for name in names.values()):
        return []
    return sorted(args.methods, key=lambda method: next(iter(found[names[method]]["domains"].values()))["kl"])


def main() -> None:
    args = parsed()
    found = json.loads(args.out.read_text()) if args.out.exists() else {"cells": {}}
    if args.tables or args.write:
        lines = list(tables(found, Path(args.model).name))
        print("\n".join(lines)) if args.tables else write_between(args.write, args.out.name, lines)
        return
    if args.list:
        print("\n".join(f"{name}{'  done' if name in found['cells'] else ''}" for name in cells(args, found["cells"])))
        return
    started = time.monotonic()
    bench = Bench(args, found["cells"])
    for name in each_missing(args, found["cells"]):
        if time.monotonic() - started > args.seconds:
            break
        row = apart(lambda name=name: bench.run(name))  # type: ignore[misc]
        if row is None:
            print(f"{name}: failed, see above", file=sys.stderr)
            bench.failed.add(name)
            continue
        found["cells"][name] = row
        found |= {"versions": bench.versions, "text": bench.text, "drop": args.drop, "repair": args.repair}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.monotonic() - started:6.0f} s  {name}  {json.dumps(row.get('domains', row))}", file=sys.stderr)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("model")
    parser.add_argument("--train-text", required=True, help="for fit, training and selection")
    parser.add_argument("--domain", action="append", required=True, metavar="NAME=FILE", help="text of the measures")
    parser.add_argument("--drop", default="6")
    parser.add_argument("--repair", default="auto", help="of the second start")
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[100_000, 300_000])
    parser.add_argument("--pool", type=int, default=1_000_000, help="tokens of which the shuffled beginning is trained on")
    parser.add_argument("--best", type=int, default=3, help="methods that go on to more tokens")
    parser.add_argument("--methods", type=words, default=list(METHODS))
    parser.add_argument("--objectives", type=words, default=["kd", "text"])
    parser.add_argument("--starts", type=words, default=list(STARTS))
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=48, help="of each domain's measure")
    parser.add_argument("--selection", type=int, default=16, help="samples that choose rate and step")
    parser.add_argument("--fit-tokens", type=int, default=100_000, help="that the repair of the second start reads")
    parser.add_argument("--rates-like", type=Path, metavar="FILE", help="results of another model")
    parser.add_argument("--work", type=Path, required=True, help="folder of students, trainings and logits")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "heal.json")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no cell after this time")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    return parser.parse_args()


def each_missing(args: argparse.Namespace, found: dict[str, Row]) -> Iterator[str]:
    """The next cell that is not there, asked for anew after each: results decide what follows."""
    tried: set[str] = set()
    while True:
        names = ["starts", *cells(args, found)]
        name = next((name for name in names if name not in found and name not in tried), None)
        if name is None or (name != "starts" and "starts" not in found):
            return
        tried.add(name)
        yield name


def apart(work: Callable[[], Row]) -> Row | None:
    """What a function gives in a process of its own, which begins with all that this one has loaded; None where it failed.

    The process ends with this one: a training in it then leaves a checkpoint.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as file:
            text = file.read()
        os.waitpid(child, 0)
        return json.loads(text) if text else None
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        os.close(reading)
        row = work()
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(row))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Bench:
    """The teacher, its texts and what was measured so far; opened before the cells, each of which is a process of its own."""

    def __init__(self, args: argparse.Namespace, found: dict[str, Row]) -> None:
        warnings.filterwarnings("ignore", module="transformers|torch")
        import transformers.trainer  # noqa: F401  loaded once for all cells

        from shoal.engine.open import open_model
        from shoal.run.job import versions
        from shoal.text.corpus import open_corpus
        from shoal.train.heal.merge import merge_pupil  # noqa: F401
        from shoal.train.heal.text_rows import TextRows
        from shoal.words.records import stable_hash

        self.args, self.found, self.failed = args, found, set[str]()
        self.opened = open_model(args.model)
        self.corpus = open_corpus(args.train_text, self.opened.tokenizer)
        pool = self.corpus.samples("training", n=args.pool // args.length, length=args.length, fewest=8)
        self.training = TextRows.of(pool).shuffled(0, pool.n_samples)
        self.whole = TextRows.of(pool)
        self.selection = self._rows(self.corpus, "selection", args.selection)
        self.domains = {
            name: self._rows(open_corpus(file, self.opened.tokenizer), "evaluation", args.samples)
            for name, file in (one.split("=", 1) for one in args.domain)
        }
        self.versions = versions()
        self.text = {"data": Path(pool.data).name, "data_hash": pool.data_hash, "length": args.length, "batch": args.batch}
        self.stamp = stable_hash(self.opened.fingerprint, pool.data_hash, args.length)[:12]

    def _rows(self, corpus: Any, slice: str, n: int) -> Any:
        from shoal.train.heal.text_rows import TextRows

        return TextRows.of(corpus.samples(slice, n=n, length=self.args.length, fewest=8))

    def logits(self, name: str, rows: Any) -> Any:
        from stored_logits import StoredLogits

        return StoredLogits(self.args.work / f"logits-{self.stamp}-{name}", rows, self.opened.model.config.vocab_size)

    def judge(self, name: str, rows: Any) -> Any:
        """A text with the teacher's logits of it, as a lesson to be measured on."""
        from stored_logits import StoredTeacher

        from shoal.train.heal.train import Lesson

        kept = self.logits(f"{name}-{rows.data_hash[-8:]}", rows)
        kept.fill(self.opened.model, len(rows))
        return Lesson(rows, rows, StoredTeacher(kept, kept))

    @cached_property
    def lesson(self) -> Any:
        from stored_logits import StoredTeacher

        chosen = self.judge("selection", self.selection)
        return replace(
            chosen,
            training=self.whole,
            teacher=StoredTeacher(self.logits("training", self.training), chosen.teacher.of_selection),
        )

    def figures(self, model: Any) -> Row:
        """KL to the teacher and perplexity in every domain."""
        from shoal.train.heal.merge import measure

        found = {name: measure(model, self.judge(name, rows), batch_size=4) for name, rows in self.domains.items()}
        return {name: {"kl": round(one["kl"], 5), "perplexity": round(math.exp(one["nll"]), 3)} for name, one in found.items()}

    # -- cells --------------------------------------------------------------------------------------------------------------

    def run(self, name: str) -> Row:
        """One row of the table."""
        if name == "starts":
            return self.starts()
        method, objective, start, tokens = name.split(":")
        n = int(tokens) // (self.args.batch * self.args.length) * self.args.batch
        if objective == "kd" and method != "streamline":
            apart(lambda: {"n": self.lesson.teacher.of_training.fill(self.opened.model, n)})
        make = self.streamline if method == "streamline" else self.healed
        row, model = make(name, method, objective, start, n * self.args.length)
        row["domains"] = self.figures(model)
        for domain, one in row["domains"].items():
            one["repaired"] = round(1 - one["kl"] / self.found["starts"]["plain"][domain]["kl"], 4)
        return row

    def starts(self) -> Row:
        from shoal.engine.open import load_strictly

        rows: Row = {}
        for start in STARTS:
            began = time.monotonic()
            state = self.start(start)
            seconds = round(time.monotonic() - began, 1)
            rows[start] = self.figures(load_strictly(state.model))
            rows[f"{start}_made"] = {"seconds": seconds, "layers_out": list(state.planned.removed_layers)}
        began = time.monotonic()
        n = self.logits("speed", self.training).fill(self.opened.model, 8)
        self.logits("speed", self.training).path.unlink()
        speed = round(n * self.args.length / (time.monotonic() - began), 1)
        return {"teacher": self.figures(self.opened.model), "teacher_tokens_per_second": speed, **rows}

    def start(self, start: str) -> Any:
        """The student that trainings begin with; nothing is done where it stands in the work folder."""
        return self.made(f"start-{start}", repair="none" if start == "plain" else self.args.repair, replace="none")

    def made(self, folder: str, **changes: Any) -> Any:
        """The stages of a recipe up to a student, and its checkpoint; the scan is made once for all."""
        from shoal.engine.view import DecoderView
        from shoal.engine.workers import ALONE
        from shoal.recipes.recipe_file import load_recipe
        from shoal.run.folder import RunFolder
        from shoal.run.job import Inputs
        from shoal.run.stage import State, run_all
        from shoal.run.stages.scan import SCAN
        from shoal.run.stages.table import TO_A_STUDENT
        from shoal.run.stages.write import WRITE

        args = self.args
        text = {"sources": [args.train_text], "length": args.length, "selection": args.selection, "evaluation": 8}
        given = {
            "model": args.model,
            "text": text,
            "drop": args.drop,
            "guard": 1,
            "heal": None,
            "fit": {"tokens": args.fit_tokens},
        }
        recipe = load_recipe("default", {**given, **changes})
        inputs = Inputs(recipe, self.opened, DecoderView(self.opened.model), self.corpus, workers=ALONE)
        path, scanned = args.work / folder, args.work / "scan"
        if scanned.exists() and not path.exists():
            shutil.copytree(scanned, path)
        run = RunFolder(path, version="0", command="", versions=self.versions, overwrite=True, workers=ALONE)
        state = run_all([SCAN], State(inputs), run)
        if not scanned.exists():
            shutil.copytree(path, scanned)
        return run_all([*TO_A_STUDENT, WRITE], state, run)

    def known_rate(self, name: str, own: float) -> float | None:
        """The rate of the same method's cell with fewer tokens, or that follows from another model's."""
        method, objective, start, _ = name.split(":")
        for cell, row in self.found.items():
            if cell.startswith(f"{method}:{objective}:{start}:"):
                return row["lr"]
        if self.args.rates_like is None:
            return None
        theirs = json.loads(self.args.rates_like.read_text())["cells"]
        alike = [row["times"] for cell, row in theirs.items() if cell.startswith(f"{method}:{objective}:")]
        return None if not alike else own * alike[0]

    def healed(self, name: str, method: str, objective: str, start: str, tokens: int) -> tuple[Row, Any]:
        from shoal.train.heal.config import HealConfig
        from shoal.train.heal.merge import merge_pupil
        from shoal.train.heal.rates import best_rate, find_rate
        from shoal.train.heal.train import open_pupil, train

        args, lesson = self.args, self.lesson
        if objective == "text":
            lesson = replace(lesson, teacher=None)
        step = args.batch * args.length
        config = HealConfig(
            objective=OBJECTIVES[objective],
            tokens=tokens,
            batch=args.batch,
            micro_batch=args.batch,
            eval_every=-(-tokens // step // VALIDATIONS),
            **METHODS[method],
        )
        path, work = args.work / f"start-{start}" / "model", args.work / name.replace(":", "-")
        if not path.exists():  # The row of the starts was written with another work folder.
            apart(lambda: {"model": str(self.start(start).model)})
        held = resident()
        pupil = open_pupil(path, config, lesson)
        own = pupil.method.learning_rate(pupil.hidden_size)
        lr, rates = self.known_rate(name, own), []
        if lr is None:
            rates = find_rate(pupil, config, lesson, work, device="cpu")
            lr = best_rate(rates)
        done = train(pupil, config.model_copy(update={"lr": lr}), lesson, work)
        merging, model = merge_pupil(pupil, done.best, config, lesson, path)
        shutil.rmtree(work)
        return {
            "lr": lr,
            "times": round(lr / own, 4),
            "rates": [(one.lr, one.measure) for one in rates],
            "n_trainable": done.n_trainable,
            "n_tokens": done.n_tokens,
            "best_step": done.best_step,
            "n_steps": done.n_steps,
            "tokens_per_second": done.tokens_per_second,
            "seconds": round(done.n_tokens / done.tokens_per_second, 1),
            "peak_bytes": done.peak_bytes - held,
            "merge": merging.way,
            "merge_lost": merging.taken.lost if merging.taken else 0.0,
            "selection": [point.measure(done.decided_by) for point in done.curve],
        }, model

    def streamline(self, name: str, method: str, objective: str, start: str, tokens: int) -> tuple[Row, Any]:
        """The inherited layer, behind the cut or behind the repair, whose values are then trained with it."""
        from shoal.engine.open import load_strictly
        from shoal.train.config import MOST_LR, RATE_TIMES_WIDTH
        from shoal.train.heal.rates import FEWEST_STEPS, SHARE, TIMES

        own = min(MOST_LR, RATE_TIMES_WIDTH / self.opened.model.config.hidden_size)
        repair = "none" if start == "plain" else self.args.repair

        def at(lr: float, tokens: int) -> tuple[Row, Path]:
            batch = self.args.batch
            n_steps = tokens // (batch * self.args.length)
            training = {
                "objective": OBJECTIVES[objective],
                "tokens": tokens,
                "lr": lr,
                "min_lr": lr / 10,
                "betas": [0.9, 0.999],
            }
            training |= {"batch": batch, "micro_batch": batch, "eval_every": -(-n_steps // VALIDATIONS), "weight_decay": 0.0}
            folder = f"{name.replace(':', '-')}-{tokens}-{lr:.2e}"
            state = self.made(folder, replace="layer", repair=repair, train=training)
            (result,) = state.trained
            row = {
                "lr": lr,
                "times": round(lr / own, 4),
                "n_trainable": result.n_parameters,
                "n_tokens": result.n_tokens,
                "best_step": result.best_step,
                "n_steps": result.n_steps,
                "tokens_per_second": round(result.n_tokens / result.seconds, 1),
                "seconds": round(result.seconds, 1),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "selection": [point.quality for point in result.curve],
            }
            return row, self.args.work / folder

        def tried(lr: float) -> tuple[float, float]:
            per_step = self.args.batch * self.args.length
            row, folder = at(lr, min(tokens, max(FEWEST_STEPS * per_step, round(tokens * SHARE))))
            shutil.rmtree(folder)
            return row["selection"][-1], lr

        lr, rates = self.known_rate(name, own), []
        if lr is None:
            rates = sorted(tried(own * times) for times in TIMES)
            while len(rates) < 6 and rates[0][1] in (min(r for _, r in rates), max(r for _, r in rates)):
                ends = rates[0][1] / 3, rates[0][1] * 3
                rates = sorted([*rates, tried(ends[0] if rates[0][1] == min(r for _, r in rates) else ends[1])])
            lr = rates[0][1]
        held = resident()
        row, folder = at(lr, tokens)
        row |= {"rates": [(rate, kl) for kl, rate in sorted(rates, key=lambda one: one[1])]}
        row["peak_bytes"] -= held
        return row, load_strictly(folder / "model")


def resident() -> int:
    """Bytes that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
