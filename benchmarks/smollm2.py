"""SmolLM2-135M-Instruct made shallower: what the criteria choose, what a cut destroys, what the repairs bring back.

    make smollm2
    python benchmarks/smollm2.py smollm2 --books TRAIN.txt --other BOOKS.txt --wiki WIKI.txt [--bench DIR] [--cells N]

Resumable, cell by cell: each cell is written to ``--out`` as soon as it is measured, cells that stand there are skipped,
``--cells 1`` measures the next one and stops. Fitted values wait in ``--work``, so that a student is repaired once.

- books: text to scan and to fit on; ``other``, of the same domain, and ``wiki``, of another, are only measured on.
- bench: ARC-easy, PIQA, SciQ, COPA and LAMBADA as JSON lines (``ctx``, ``choices``, ``gold``; ``ctx``, ``target``).

Tables: python benchmarks/smollm2.py --tables prints them as Markdown from the file of results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

LENGTH, SCAN_SAMPLES, MEASURED_SAMPLES = 512, 32, 16
FIT_SAMPLES = {"refit": 32, "sweep": 32}
SHARES = {"10 %": 3, "25 %": 7, "40 %": 12, "50 %": 15}
TASKS = {"arc_easy_test": 100, "piqa_val": 100, "sciq_val": 60, "copa_val": 100, "lambada_openai_test": 100}
PROMPTS = (
    "What is the capital of Germany?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
    "Why do people sleep?",
)


class Bench:
    """The model, its texts and the students, each opened when a cell first asks for it."""

    def __init__(self, options: argparse.Namespace, results: dict[str, Any]) -> None:
        self.options, self.results = options, results

    @cached_property
    def opened(self) -> Any:
        from shoal.engine.open import open_model

        return open_model(self.options.model)

    @cached_property
    def view(self) -> Any:
        from shoal.engine.view import DecoderView

        return DecoderView(self.opened.model)

    def samples(self, path: Path, slice: str, n: int) -> Any:
        from shoal.text import open_corpus

        return open_corpus(path, self.opened.need_tokenizer(), seed=0).samples(slice, n=n, length=LENGTH)

    def plan(self, layers: Sequence[int]) -> Any:
        from shoal.edits.drop import Drop
        from shoal.select.model_size import model_size
        from shoal.select.plan_of import plan_of

        size = model_size(self.view)
        return plan_of((Drop(indices=tuple(layers)),), size, source=self.opened.name, source_hash=self.opened.fingerprint)

    def plain(self, layers: Sequence[int]) -> Any:
        from shoal.engine.student import Student
        from shoal.words.types import Unit

        return Student(removed=frozenset(Unit("layer", layer) for layer in layers), name=str(list(layers)))

    def repaired(self, repair: str, share: str = "25 %") -> Any:
        """The student of the best span at a share, fitted once; its values are kept in the work folder."""
        from safetensors.torch import load_file, save_file

        from shoal.edits.plan import Plan
        from shoal.edits.student_of import student_of
        from shoal.fit.fit_plan import fit_plan

        work = self.options.work
        name = repair if share == "25 %" else f"{repair}-{share[:2]}"
        values, plan = work / f"{name}.safetensors", work / f"{name}.json"
        if not values.exists():
            text = self.samples(self.options.books, "training", FIT_SAMPLES[repair])
            started = time.monotonic()
            fitted = fit_plan(self.view, self.plan(self.best_of(share)), text, repair=repair, batch_size=8)  # type: ignore[arg-type]
            work.mkdir(parents=True, exist_ok=True)
            fitted.plan.save(plan)
            (work / f"{name}.seconds").write_text(f"{time.monotonic() - started:.0f}")
            save_file(fitted.values, values)
        return student_of(self.view, Plan.load(plan), load_file(values))

    def best_of(self, share: str) -> list[int]:
        return list(self.results["criteria"][share]["cosine (LLM-Streamline)"])

    @property
    def best(self) -> list[int]:
        return self.best_of("25 %")


# -- cells -----------------------------------------------------------------------------------------------------------------


def criteria(bench: Bench) -> dict[str, Any]:
    """Layers that each published criterion removes, at every share, from one scan."""
    from shoal.measure.scan import scan
    from shoal.words.records import Provenance

    text = bench.samples(bench.options.books, "calibration", SCAN_SAMPLES)
    made = dict(model=bench.opened.name, model_hash=bench.opened.fingerprint, data=text.data, data_hash=text.data_hash)
    source = Provenance(n_samples=text.n_samples, n_tokens=text.n_tokens, length=LENGTH, dtype="bfloat16", seed=0, **made)
    found = scan(bench.view, text.batches(8), provenance=source)
    n_layers = bench.view.n_layers
    influence = [found.tables["block_influence/every"].values[layer, layer + 1] for layer in range(n_layers)]
    chosen = {}
    for share, n in SHARES.items():
        by_cosine = found.tables["cosine/every"].values
        by_angle = found.tables["angular/last"].values
        starts = range(n_layers - n + 1)
        cosine = max(starts, key=lambda start: by_cosine[start, start + n])
        angle = min(starts, key=lambda start: by_angle[start, start + n])
        chosen[share] = {
            "cosine (LLM-Streamline)": list(range(cosine, cosine + n)),
            "angular, last token (UIDL)": list(range(angle, angle + n)),
            "the deepest but the last (UIDL's simple rule)": list(range(n_layers - 1 - n, n_layers - 1)),
            "block influence (ShortGPT)": sorted(sorted(range(n_layers), key=lambda layer: influence[layer])[:n]),
        }
    return {"tokens": text.n_tokens, "data": Path(text.data).name, **chosen}


def closeness(bench: Bench, students: dict[str, Any], path: Path) -> dict[str, Any]:
    from shoal.measure.oracle import Oracle

    text = bench.samples(path, "evaluation", MEASURED_SAMPLES)
    started = time.monotonic()
    oracle = Oracle(bench.view, text.batches(8))
    from shoal.engine.student import TEACHER

    measured = oracle.measure([TEACHER, *students.values()])
    rows = dict(zip(["teacher", *students], measured, strict=True))
    return {
        "tokens": measured[0].n_tokens,
        "seconds": time.monotonic() - started,
        "rows": {name: one.model_dump(mode="json") for name, one in rows.items()},
    }


def plain_cuts(share: str, domain: str) -> Callable[[Bench], dict[str, Any]]:
    def cell(bench: Bench) -> dict[str, Any]:
        chosen = bench.results["criteria"][share]
        return closeness(bench, {name: bench.plain(layers) for name, layers in chosen.items()}, getattr(bench.options, domain))

    return cell


def repairs(domain: str) -> Callable[[Bench], dict[str, Any]]:
    def cell(bench: Bench) -> dict[str, Any]:
        students = {"plain cut": bench.plain(bench.best), **{name: bench.repaired(name) for name in FIT_SAMPLES}}
        return closeness(bench, students, getattr(bench.options, domain))

    return cell


def fitted(repair: str) -> Callable[[Bench], dict[str, Any]]:
    def cell(bench: Bench) -> dict[str, Any]:
        bench.repaired(repair)
        seconds = float((bench.options.work / f"{repair}.seconds").read_text())
        return {"tokens": FIT_SAMPLES[repair] * LENGTH, "seconds": seconds, "layers": bench.best, "load": os.getloadavg()[0]}

    return cell


def task(name: str) -> Callable[[Bench], dict[str, Any]]:
    """Which items each student has right: the last word as the likeliest, or the likeliest option per character."""

    def cell(bench: Bench) -> dict[str, Any]:
        from shoal.engine.student import TEACHER
        from shoal.evaluate.tasks.choice import score_task
        from shoal.evaluate.tasks.task_files import load_task

        students = {"teacher": TEACHER, "plain cut": bench.plain(bench.best)}
        students |= {repair: bench.repaired(repair) for repair in FIT_SAMPLES}
        one = load_task(bench.options.bench / f"{name}.jsonl").head(TASKS[name])
        tokenizer = bench.opened.need_tokenizer()
        scores = score_task(bench.view, one, tokenizer=tokenizer, students=list(students.values()), window=1024)
        right = {
            label: [
                int(item.is_greedy[0] if one.form == "last_word" else item.answer_norm == item.item.gold)
                for item in found.items
            ]
            for label, found in zip(students, scores, strict=True)
        }
        return {"items": len(one.items), "right": right}

    return cell


def chat(share: str, repairs: Sequence[str]) -> Callable[[Bench], dict[str, Any]]:
    """Greedy answers to five prompts through the model's chat template."""

    def cell(bench: Bench) -> dict[str, Any]:
        from shoal.engine.student import TEACHER
        from shoal.evaluate.generate import greedy_tokens, model_of

        tokenizer = bench.opened.need_tokenizer()
        students = {"teacher": TEACHER, "plain cut": bench.plain(bench.best_of(share))}
        students |= {name: bench.repaired(name, share) for name in repairs}
        answers: dict[str, dict[str, str]] = {prompt: {} for prompt in PROMPTS}
        for label, student in students.items():
            model = model_of(bench.view, student)
            for prompt in PROMPTS:
                asked = [{"role": "user", "content": prompt}]
                ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
                said = greedy_tokens(model, ids["input_ids"][0], max_new_tokens=40)
                answers[prompt][label] = tokenizer.decode(said, skip_special_tokens=True).strip()
        return {"max_new_tokens": 40, "layers": bench.best_of(share), "answers": answers}

    return cell


CELLS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "criteria": criteria,
    "plain 25 % other": plain_cuts("25 %", "other"),
    "plain 25 % wiki": plain_cuts("25 %", "wiki"),
    "fit refit": fitted("refit"),
    "fit sweep": fitted("sweep"),
    "repairs other": repairs("other"),
    "repairs wiki": repairs("wiki"),
    "chat": chat("25 %", list(FIT_SAMPLES)),
    "chat 10 %": chat("10 %", ["refit"]),
    **{f"task {name}": task(name) for name in TASKS},
    **{
        f"plain {share} {domain}": plain_cuts(share, domain)
        for share in ("10 %", "40 %", "50 %")
        for domain in ("other", "wiki")
    },
}


# -- tables ----------------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    parts = []
    for share in SHARES:
        by_domain = {domain: results.get(f"plain {share} {domain}") for domain in ("other", "wiki")}
        if all(by_domain.values()):
            chosen = results["criteria"][share]
            parts += [f"Plain cuts, {share} of the layers:\n", *_table(by_domain, {k: spans(v) for k, v in chosen.items()}), ""]
    by_domain = {domain: results.get(f"repairs {domain}") for domain in ("other", "wiki")}
    if all(by_domain.values()):
        costs = {name: results[f"fit {name}"] for name in FIT_SAMPLES}
        said = {name: f"{one['tokens'] / 1000:.0f} k tokens, {one['seconds'] / 60:.1f} min" for name, one in costs.items()}
        parts += ["Repairs at 25 %:\n", *_table(by_domain, {"plain cut": "", **said}), ""]
    asked = {name: results[f"task {name}"] for name in TASKS if f"task {name}" in results}
    if asked:
        labels = list(next(iter(asked.values()))["right"])
        parts += ["| task (items) | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
        for name, one in asked.items():
            shares = [f"{100 * sum(one['right'][label]) / one['items']:.0f}" for label in labels]
            parts.append(f"| {name} ({one['items']}) | " + " | ".join(shares) + " |")
    return "\n".join(parts)


def _table(by_domain: dict[str, Any], notes: dict[str, str]) -> list[str]:
    rows = [
        "| | | KL, other books | KL, WikiText | perplexity, other books | perplexity, WikiText |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in next(iter(by_domain.values()))["rows"]:
        found = [by_domain[domain]["rows"][name] for domain in ("other", "wiki")]
        kl = " | ".join(f"{one['kl']:.3f} ± {one['kl_stderr']:.3f}" for one in found)
        perplexity = " | ".join(f"{one['perplexity']:.4g}" for one in found)
        rows.append(f"| {name} | {notes.get(name, '')} | {kl} | {perplexity} |")
    return rows


def spans(layers: Sequence[int]) -> str:
    from shoal.words.structure import runs_said

    return f"layers {runs_said(layers)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("model", type=Path, nargs="?", default=Path("smollm2"))
    for name in ("books", "other", "wiki", "bench"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--work", type=Path, default=Path("smollm2-work"))
    parser.add_argument("--out", type=Path, default=here / "results" / "smollm2.json")
    parser.add_argument("--cells", type=int, default=len(CELLS), help="measure at most that many")
    parser.add_argument("--only", help="cells whose name contains this")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.tables:
        print(tables(results))
        return
    bench, left = Bench(options, results), options.cells
    for name, cell in CELLS.items():
        if name in results or left == 0 or (options.only or "") not in name:
            continue
        if name.startswith("task") and options.bench is None:
            continue
        started = time.monotonic()
        with torch.no_grad():
            found = cell(bench)
        results[name] = {**found, "wall_seconds": time.monotonic() - started, "threads": torch.get_num_threads()}
        unfinished = options.out.with_suffix(".part")
        unfinished.write_text(json.dumps(results, indent=1) + "\n")
        unfinished.replace(options.out)
        print(f"{name}: {results[name]['wall_seconds']:.0f} s", file=sys.stderr, flush=True)
        left -= 1


if __name__ == "__main__":
    main()
