"""Repairs of one cut against each other: KL to the teacher and perplexity, in-domain and on another domain, and what they cost.

    python benchmarks/repair.py --shared DIR [--only WORDS] [--models NAMES] [--ratios 0.25 ...] [--out FILE]

``DIR`` holds ``models`` and ``corpora``. Every cell is written to the results as soon as it is measured and a further call goes
on where the last one stopped, so rows can be added by name in ``repair_rows.py``. ``--print`` shows the tables and measures
nothing.

Parts: ``same plan``: every method repairs the same span, the one of least KL without repair. ``own plan``: the three best spans
are repaired by each method, which keeps its best by KL on ``selection``. ``seeds``: other text for the fit. Nothing is
chosen on the text that is reported.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from repair_rows import ROWS, Cut, Made
from repair_table import tables

from shoal.engine.open import open_model
from shoal.engine.student import student_without
from shoal.engine.view import DecoderView
from shoal.fit.sites.site import CannotRefit
from shoal.measure.oracle import Oracle, Quality
from shoal.run.job import bundled_model, versions
from shoal.text.corpus import open_corpus
from shoal.text.samples import Samples
from shoal.words.records import write_atomically
from shoal.words.types import Span

HERE = Path(__file__).parent
BATCH = 32
RATIOS = (0.12, 0.25, 0.37, 0.5)
TRAINED_AT = 0.25
N_CANDIDATES = 3
OWN_PLAN = (
    "none", "Prune&Comp: scale", "ReplaceMe: map, least squares", "LinearPatch: Hadamard ratios", "Ghosted Layers: free map",
    "refit", "sweep",
)  # fmt: skip
SEEDS = {"books-12l": (1, 2)}


@dataclass(frozen=True)
class Source:
    """A model and its text; ``other`` is of another domain. ``is_small``: closed forms at one ratio only."""

    model: str
    fit: str
    own: str
    other: str
    length: int
    is_small: bool = False


SOURCES = {
    "books-16l": Source("books-16l", "books.train.txt.gz", "books.val.txt", "wikitext2.valid.txt", 128),
    "books-12l": Source("books-12l", "books.train.txt.gz", "books.val.txt", "wikitext2.valid.txt", 128),
    "bitllama-1M-8l": Source("bitllama-1M-8l", "tinystories.calib.txt", "tinystories.calib.txt", "books.val.txt", 128),
    "craftgpt-6l": Source("craftgpt-6l", "tinystories.calib.txt", "tinystories.calib.txt", "books.val.txt", 64),
    "bundled": Source("", "books.train.txt.gz", "books.val.txt", "wikitext2.valid.txt", 128, is_small=True),
}
"""Own text of the last two comes from the same file as the text of the fit: slices that share no document."""


class Results:
    """The results file: settings, chosen spans, and cells by key."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": settings, "versions": versions(), "spans": {}, "cells": []}
        if path.exists():
            self.content = json.loads(path.read_text())
            if self.content["settings"] != settings:
                raise SystemExit(f"{path} was measured with {self.content['settings']}, not {settings}; give another --out")
        self.done = {tuple(cell["key"]) for cell in self.content["cells"]}

    def add(self, key: tuple[Any, ...], cell: dict[str, Any]) -> None:
        self.content["cells"].append({"key": list(key), **cell})
        self.done.add(key)
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(self.content, indent=1) + "\n").encode())


class Bench:
    """One model with its texts and oracles; the teacher's states on the text of the fit are run once and shared."""

    def __init__(self, name: str, shared: Path, settings: dict[str, Any], *, seed: int = 0) -> None:
        self.name, self.source, self.settings = name, SOURCES[name], settings
        opened = open_model(str(shared / "models" / self.source.model) if self.source.model else str(bundled_model()))
        self.view, self.tokenizer, self.corpora = DecoderView(opened.model), opened.tokenizer, shared / "corpora"
        self.training = self.text(self.source.fit, "training", max(settings["train_tokens"], settings["fit_tokens"]), seed)
        self.fit = self.training.take(settings["fit_tokens"] // self.source.length)
        self.batches = self.fit.batches(BATCH)
        self.selection = self.text(self.source.fit, "selection", settings["selection_tokens"], 0)
        evaluation = settings["evaluation_tokens"]
        self.judge = Oracle(self.view, self.selection.batches(BATCH))
        self.oracles = {
            "own": Oracle(self.view, self.text(self.source.own, "evaluation", evaluation, 0).batches(BATCH)),
            "other": Oracle(self.view, self.text(self.source.other, "evaluation", evaluation, 0).batches(BATCH)),
        }
        self.known: dict[int, list[torch.Tensor]] = {}

    def text(self, file: str, slice: str, tokens: int, seed: int) -> Samples:
        corpus = open_corpus(str(self.corpora / file), self.tokenizer, seed=seed)
        return corpus.samples(slice, n=max(8, tokens // self.source.length), length=self.source.length, fewest=8)

    def cut(self, span: Span) -> Cut:
        if not self.known:
            self._run_teacher()
        return Cut(
            view=self.view,
            span=span,
            fit=self.fit,
            batches=self.batches,
            known=self.known,  # type: ignore[arg-type]
            training=self.training,
            selection=self.selection,
            quality=lambda student: self.judge.measure([student])[0].kl,
            long=self.settings["train_tokens"],
            short=self.settings["polish_tokens"],
        )

    @torch.no_grad()
    def _run_teacher(self) -> None:
        started = time.monotonic()
        self.known = {boundary: [] for boundary in range(self.view.n_layers + 1)}
        for batch in self.batches:
            for boundary, h_BTD in self.view.stream(self.view.read(batch)):
                self.known[boundary].append(h_BTD)
        self.forward_seconds = time.monotonic() - started

    def spans(self, n: int) -> list[Span]:
        """Spans of n layers by KL on ``selection`` without repair, best first; first and last layer stay."""
        found = [Span(start, start + n) for start in range(1, self.view.n_layers - n)]
        kl = self.judge.measure([student_without(span.layers) for span in found])
        return [span for _, span in sorted(zip((one.kl for one in kl), found, strict=True), key=lambda pair: pair[0])]

    def measure(self, made: Sequence[Made]) -> list[dict[str, Any]]:
        students = [one.student for one in made]
        own, other = (self.oracles[name].measure(students) for name in ("own", "other"))
        return [
            {
                "own": figures(a),
                "other": figures(b),
                "new_parameters": one.new_parameters,
                "fit_tokens": one.fit_tokens,
                "train_tokens": one.train_tokens,
                "seconds": round(one.seconds, 2),
            }
            for one, a, b in zip(made, own, other, strict=True)
        ]


def figures(found: Quality) -> dict[str, float]:
    return {name: round(getattr(found, name), 6) for name in ("kl", "kl_stderr", "agreement", "perplexity")}


def n_removed(ratio: float, n_layers: int) -> int:
    """Nearest number of layers, at least one, and two fewer than there are at most."""
    return min(n_layers - 2, max(1, int(ratio * n_layers + 0.5)))


def made_of(row: str, cut: Cut, report: Callable[[str], None]) -> Made | None:
    """None where the family has not this repair."""
    try:
        return ROWS[row].method(cut)
    except CannotRefit as reason:
        report(f"{row}: {reason}")
        return None


def same_plan(bench: Bench, results: Results, *, ratios: Sequence[float], rows: Sequence[str], part: str, seed: int) -> None:
    for ratio, span, n in _cuts(bench, results, ratios):
        trained_here = bench.settings["train_at"]
        wanted = [row for row in rows if not ROWS[row].trains or (ratio in trained_here and not bench.source.is_small)]
        missing = [row for row in wanted if (bench.name, n, part, row, seed) not in results.done]
        if not missing:
            continue
        cut = bench.cut(span)
        about = {"layers": [span.start, span.stop], "ratio": ratio, "n_layers": bench.view.n_layers}
        say(f"{bench.name} {part} seed {seed}: layers {span.start}..{span.stop - 1} of {bench.view.n_layers} out")
        closed = [row for row in missing if not ROWS[row].trains]
        made = {row: one for row in closed if (one := made_of(row, cut, say)) is not None}
        for row in set(closed) - set(made):
            results.add((bench.name, n, part, row, seed), about | {"absent": True})
        for row, cell in zip(made, bench.measure(list(made.values())), strict=True):
            record(results, (bench.name, n, part, row, seed), about | cell)
        for row in (row for row in missing if ROWS[row].trains):
            one = made_of(row, cut, say)
            assert one is not None
            record(results, (bench.name, n, part, row, seed), about | bench.measure([one])[0])


def own_plan(bench: Bench, results: Results, *, ratios: Sequence[float], rows: Sequence[str]) -> None:
    for ratio, _, n in _cuts(bench, results, ratios):
        missing = [row for row in rows if row in OWN_PLAN and (bench.name, n, "own plan", row, 0) not in results.done]
        if not missing:
            continue
        cuts = [bench.cut(span) for span in bench.spans(n)[:N_CANDIDATES]]
        best: dict[str, tuple[Span, Made]] = {}
        for row in missing:
            candidates = [(cut.span, one) for cut in cuts if (one := made_of(row, cut, say)) is not None]
            if not candidates:
                continue
            kl = bench.judge.measure([made.student for _, made in candidates])
            best[row] = min(zip((one.kl for one in kl), candidates, strict=True), key=lambda pair: pair[0])[1]
        for (row, (span, _)), cell in zip(best.items(), bench.measure([made for _, made in best.values()]), strict=True):
            about = {"layers": [span.start, span.stop], "ratio": ratio, "n_layers": bench.view.n_layers}
            record(results, (bench.name, n, "own plan", row, 0), about | cell)


def _cuts(bench: Bench, results: Results, ratios: Sequence[float]) -> Iterator[tuple[float, Span, int]]:
    """Per ratio the span of least KL without repair; ratios that give the same number of layers once."""
    seen: set[int] = set()
    for ratio in ratios:
        n = n_removed(ratio, bench.view.n_layers)
        if n in seen:
            continue
        seen.add(n)
        name = f"{bench.name} {n}"
        if name not in results.content["spans"]:
            span = bench.spans(n)[0]
            results.content["spans"][name] = [span.start, span.stop]
            results.save()
        start, stop = results.content["spans"][name]
        yield ratio, Span(start, stop), n


def record(results: Results, key: tuple[Any, ...], cell: dict[str, Any]) -> None:
    results.add(key, cell)
    say(f"  {key[3]:40} KL {cell['own']['kl']:.4f}  other {cell['other']['kl']:.4f}  {cell['seconds']:.0f} s")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared", help="folder with models and corpora")
    parser.add_argument("--models", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--train-at", nargs="*", type=float, default=[TRAINED_AT], help="ratios at which rows that train run")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these")
    parser.add_argument("--parts", nargs="+", default=["same plan", "own plan", "seeds"])
    parser.add_argument("--fit-tokens", type=int, default=60_032)
    parser.add_argument("--train-tokens", type=int, default=300_032, help="of a replacement")
    parser.add_argument("--polish-tokens", type=int, default=30_080, help="per stage")
    parser.add_argument("--selection-tokens", type=int, default=6_400)
    parser.add_argument("--evaluation-tokens", type=int, default=16_000, help="per domain")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "repairs.json")
    parser.add_argument("--print", action="store_true", help="the tables of what has been measured")
    args = parser.parse_args()
    if args.print:
        print(tables(json.loads(args.out.read_text()), list(ROWS)))
        return
    settings = {
        "fit_tokens": args.fit_tokens,
        "train_tokens": args.train_tokens,
        "polish_tokens": args.polish_tokens,
        "selection_tokens": args.selection_tokens,
        "evaluation_tokens": args.evaluation_tokens,
        "threads": torch.get_num_threads(),
    }
    results = Results(args.out, settings)
    rows = [row for row in ROWS if any(part.lower() in row.lower() for part in args.only)]
    for name in args.models:
        bench = Bench(name, args.shared, settings | {"train_at": args.train_at})
        ratios = [TRAINED_AT] if bench.source.is_small else args.ratios
        if "same plan" in args.parts:
            same_plan(bench, results, ratios=ratios, rows=rows, part="same plan", seed=0)
        if "own plan" in args.parts and not bench.source.is_small:
            own_plan(bench, results, ratios=[TRAINED_AT], rows=rows)
        if "seeds" in args.parts:
            closed = [row for row in rows if not ROWS[row].trains]
            for seed in SEEDS.get(name, ()):
                other = Bench(name, args.shared, settings | {"train_at": []}, seed=seed)
                same_plan(other, results, ratios=[TRAINED_AT], rows=closed, part="seeds", seed=seed)


if __name__ == "__main__":
    main()
