"""SmolLM2-135M-Instruct made shallower: what the criteria choose, what a cut destroys, what each method brings back.

    make smollm2
    python benchmarks/smollm2.py smollm2 --books TRAIN.txt --other BOOKS.txt --wiki WIKI.txt [--bench DIR] [--cells N]

Resumable, cell by cell: each cell is written to ``--out`` as soon as it is measured, cells that stand there are skipped,
``--cells 1`` measures the next one and stops. A student is a run folder in ``--work``, made by the recipe of its method up to
its values, so that it is repaired once; every method of a share removes as many layers and reads the same text.

- books: text to scan and to fit on; ``other``, of the same domain, and ``wiki``, of another, are only measured on. The rows
  "mixed" fit on books and on the training part of ``wiki``, half and half.
- bench: ARC-easy, PIQA, SciQ, COPA and LAMBADA as JSON lines (``ctx``, ``choices``, ``gold``; ``ctx``, ``target``).

Tables: python benchmarks/smollm2.py --tables prints them as Markdown from the file of results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from smollm2_answers import TASKS, arithmetic, chat, chat_with_default, default, every_item, instructions, task, teacher
from smollm2_bench import (
    AFTER_A_REPAIR,
    FIT_TOKENS,
    FIT_TOKENS_ELSEWHERE,
    LENGTH,
    MEASURED_SAMPLES,
    METHODS,
    SCAN_SAMPLES,
    SHARES,
    Bench,
    closeness,
)
from smollm2_tables import tables


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


def plain_cuts(share: str, domain: str) -> Callable[[Bench], dict[str, Any]]:
    def cell(bench: Bench) -> dict[str, Any]:
        chosen = bench.results["criteria"][share]
        return closeness(bench, {name: bench.plain(layers) for name, layers in chosen.items()}, getattr(bench.options, domain))

    return cell


def fitted(method: str, share: str, seed: int = 0) -> Callable[[Bench], dict[str, Any]]:
    """What the student of a method is, and how long its stages took, the scan aside."""

    def cell(bench: Bench) -> dict[str, Any]:
        started = time.monotonic()
        state = bench.made(method, share, seed)
        record = json.loads((bench.folder(method, share, seed) / "run.json").read_text())
        return {
            "plan": str(state.planned),
            "layers": list(state.planned.removed_layers),
            "tokens": FIT_TOKENS.get(share, FIT_TOKENS_ELSEWHERE),
            "seconds": time.monotonic() - started,
            "stages": {name: one.get("seconds") for name, one in record["stages"].items()},
            "load": os.getloadavg()[0],
        }

    return cell


WAYS: dict[str, tuple[str, ...]] = {"low": ("--effort", "low"), "closed forms": ("--heal", "none"), "default": ()}
"""Options of the command, by what its students are called."""


def command(way: str, share: str = "25 %") -> Callable[[Bench], dict[str, Any]]:
    """What `shoal compress --drop 25%layers` takes from start to report, and the student it leaves."""

    def cell(bench: Bench) -> dict[str, Any]:
        folder = folder_of(bench, way, share)
        wall = folder.with_suffix(".seconds")
        if not wall.exists():
            started = time.monotonic()
            asked = ["compress", str(bench.options.model), "--drop", share.replace(" %", "%layers"), *WAYS[way]]
            asked += ["--text", str(bench.options.books), "--out", str(folder), "--overwrite"]
            subprocess.run([sys.executable, "-m", "shoal", *asked], check=True)
            wall.write_text(f"{time.monotonic() - started:.0f}")
        record = json.loads((folder / "run.json").read_text())
        plan = json.loads((folder / "plan.json").read_text())
        found = {
            "seconds": float(wall.read_text()),
            "stages": {name: round(one["seconds"], 1) for name, one in record["stages"].items()},
            "edits": plan["edits"],
        }
        if (folder / "heal.json").exists():
            return {**found, **of_healed(bench, folder, called=way)}
        student = bench.student_in(folder)
        domains = ("other", "wiki")
        return {**found, **{domain: closeness(bench, {way: student}, getattr(bench.options, domain)) for domain in domains}}

    return cell


def folder_of(bench: Bench, way: str, share: str = "25 %") -> Path:
    name = f"command-{way.replace(' ', '-')}"
    return Path(bench.options.work) / (name if share == "25 %" else f"{name}-{share[:2]}")


def healed(
    way: str, n_tokens: int, length: int = 256, batch: int = 2, share: str = "25 %"
) -> Callable[[Bench], dict[str, Any]]:
    """What LoRA on the teacher's logits makes of the student that the command leaves."""

    def cell(bench: Bench) -> dict[str, Any]:
        run = folder_of(bench, way, share)
        folder = run.with_name(f"{run.name}-healed-{n_tokens}{'' if length == 256 else f'-{length}'}")
        if not (folder / "verification.json").exists():
            asked = ["--method", "lora", "--tokens", str(n_tokens), "--length", str(length), "--batch", str(batch)]
            asked += ["--text", str(bench.options.books), "--out", str(folder)]
            subprocess.run([sys.executable, "-m", "shoal", "heal", str(run), *asked], check=True)
        return of_healed(bench, folder)

    return cell


def of_healed(bench: Bench, folder: Path, *, called: str = "healed") -> dict[str, Any]:
    """The training of a folder, and how close its checkpoint is to the teacher."""
    from shoal.engine.open import open_model
    from shoal.engine.view import DecoderView
    from shoal.evaluate.evaluation import closeness as against

    record, student = json.loads((folder / "heal.json").read_text()), DecoderView(open_model(str(folder / "model")).model)
    rows = {}
    for domain in ("other", "wiki"):
        text = bench.samples(getattr(bench.options, domain), "evaluation", MEASURED_SAMPLES)
        found = against(bench.view, student, text.batches(8)).quality
        rows[domain] = {"tokens": found.n_tokens, "rows": {called: found.model_dump(mode="json")}}
    return {**{name: record[name] for name in ("n_tokens", "n_steps", "tokens_per_second")}, **rows}


def repaired(share: str, domain: str) -> Callable[[Bench], dict[str, Any]]:
    """Every student of a share that was made, in one reading of the text."""

    def cell(bench: Bench) -> dict[str, Any]:
        made = [method for method in METHODS if f"fit {method} {share}" in bench.results]
        return closeness(bench, {method: bench.student(method, share) for method in made}, getattr(bench.options, domain))

    return cell


def seeds(domain: str) -> Callable[[Bench], dict[str, Any]]:
    """One method, three orders of the text: other samples to scan and to fit on."""

    def cell(bench: Bench) -> dict[str, Any]:
        students = {f"seed {seed}": bench.student("ours, refit", "25 %", seed) for seed in (0, 1, 2)}
        return closeness(bench, students, getattr(bench.options, domain))

    return cell


def speed(bench: Bench) -> dict[str, Any]:
    """Tokens per second of prompts and of greedy decoding, teacher and plain cuts in turns; a repair changes no speed."""
    from shoal.engine.student import TEACHER
    from shoal.evaluate.generate import model_of
    from shoal.evaluate.speed import in_turns

    chosen = {share: bench.results["criteria"][share]["cosine (LLM-Streamline)"] for share in SHARES}
    students = {"teacher": TEACHER, **{share: bench.plain(layers) for share, layers in chosen.items()}}
    models = [model_of(bench.view, one) for one in students.values()]
    rates = in_turns(models, prompt_length=128, new_tokens=32, rounds=9)
    layers = {label: bench.view.n_layers - len(chosen.get(label, ())) for label in students}
    return {"layers": layers, "rows": {label: one.model_dump(mode="json") for label, one in zip(students, rates, strict=True)}}


def by_perplexity(name: str) -> Callable[[Bench], dict[str, Any]]:
    """Every span of seven layers by the perplexity that removing it leaves, on one corpus: the criterion of the reviewers."""

    def cell(bench: Bench) -> dict[str, Any]:
        from shoal.measure.oracle import Oracle

        n = SHARES["25 %"]
        text = bench.samples(getattr(bench.options, name), "selection", 8)
        spans = [list(range(start, start + n)) for start in range(1, bench.view.n_layers - n)]
        measured = Oracle(bench.view, text.batches(8)).measure([bench.plain(one) for one in spans])
        return {"tokens": measured[0].n_tokens, "starts": [one[0] for one in spans], "nll": [one.nll for one in measured]}

    return cell


def in_rounds(n_rounds: int) -> Callable[[Bench], dict[str, Any]]:
    """Seven layers out by the span's criterion, so many layers at a time, measured anew on what is left after each."""

    def cell(bench: Bench) -> dict[str, Any]:
        from shoal.recipes.recipe_file import load_recipe

        text = {"sources": [str(bench.options.books)], "length": LENGTH, "samples": 16, "selection": 8, "evaluation": 8}
        given = {"model": str(bench.options.model), "drop": "7", "guard": 1, "repair": "none", "rounds": n_rounds, "text": text}
        state = bench.run(load_recipe("default", given), Path(bench.options.work) / f"rounds-{n_rounds}")
        found = closeness(bench, {"student": state.student()}, bench.options.other)
        return {"layers": list(state.planned.removed_layers), **found}

    return cell


AT_25 = tuple(METHODS)
ELSEWHERE = tuple(name for name in METHODS if "mixed" not in name and name != "ours, polished")
CELLS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "criteria": criteria,
    "plain 25 % other": plain_cuts("25 %", "other"),
    "plain 25 % wiki": plain_cuts("25 %", "wiki"),
    **{
        f"command {way}{share and ' ' + share}": command(way, share or "25 %")
        for way in WAYS
        for share in ("", "40 %", "50 %", "10 %")
    },
    **{
        f"command {way}, healed, {n_tokens}": healed(way, n_tokens)
        for way, n_tokens in (
            ("closed forms", 24_576),
            ("low", 24_576),
            ("closed forms", 49_152),
            ("low", 98_304),
            ("closed forms", 98_304),
        )
    },
    **{f"command low {share}, healed, 98304": healed("low", 98_304, share=share) for share in ("50 %", "40 %", "10 %")},
    **{f"command low, healed, {n_tokens}, whole samples": healed("low", n_tokens, 1024, 1) for n_tokens in (49_152, 98_304)},
    **{f"fit {name} 25 %": fitted(name, "25 %") for name in AT_25},
    "repaired 25 % other": repaired("25 %", "other"),
    "repaired 25 % wiki": repaired("25 %", "wiki"),
    **{f"instructions {label}": instructions(label, make) for label, make in (("teacher", teacher), ("default", default))},
    **{
        f"instructions {name}": instructions(name, lambda bench, name=name: bench.student(name))
        for name in AFTER_A_REPAIR
        if name != "LLM-Streamline, layer"
    },
    **{f"task {name}": task(name) for name in TASKS},
    **{f"all items, {name}": every_item(name) for name in TASKS},
    "arithmetic": arithmetic,
    "chat default": chat_with_default,
    "speed": speed,
    "fit ours, refit 10 %": fitted("ours, refit", "10 %"),
    "chat 25 %": chat("25 %", ["plain cut", "ours, refit", "ours, sweep", "ours, sweep, mixed"]),
    "chat 10 %": chat("10 %", ["plain cut", "ours, refit"]),
    **{f"by perplexity {name}": by_perplexity(name) for name in ("books", "other", "wiki")},
    **{f"rounds {n}": in_rounds(n) for n in (1, 3, 7)},
    **{
        f"plain {share} {domain}": plain_cuts(share, domain)
        for share in ("10 %", "40 %", "50 %")
        for domain in ("other", "wiki")
    },
    **{
        name: cell
        for share in ("50 %", "10 %", "40 %")
        for name, cell in {
            **{f"fit {one} {share}": fitted(one, share) for one in ELSEWHERE},
            f"repaired {share} other": repaired(share, "other"),
            f"repaired {share} wiki": repaired(share, "wiki"),
        }.items()
    },
    **{f"fit seed {seed}": fitted("ours, refit", "25 %", seed) for seed in (1, 2)},
    "seeds other": seeds("other"),
    "seeds wiki": seeds("wiki"),
}


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
        if name.startswith(("task", "all items")) and options.bench is None:
            continue
        started = time.monotonic()
        found = cell(bench)
        machine = {"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}
        results[name] = {**found, "wall_seconds": time.monotonic() - started, **machine}
        unfinished = options.out.with_suffix(".part")
        unfinished.write_text(json.dumps(results, indent=1) + "\n")
        unfinished.replace(options.out)
        print(f"{name}: {results[name]['wall_seconds']:.0f} s", file=sys.stderr, flush=True)
        left -= 1


if __name__ == "__main__":
    main()
