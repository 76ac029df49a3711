"""Which units go: every selector on several models and ratios under one protocol, before and after the default repair.

    OMP_NUM_THREADS=1 python benchmarks/choose.py --model books-16l=MODEL:TEXT [--model ...] [--cells N] [--only WORD ...]

Resumable, cell by cell: a cell is one choice (model, ratio, units, way to choose) and is written to ``--out`` as soon as it is
measured; cells that stand there are skipped, ``--cells 1`` measures the next one and stops, ``--seconds N`` starts none after
that time, ``--only`` takes cells whose name has all these words. Of a model, a ratio and a kind of unit the most telling ways
come first, so that a run may be stopped anywhere. ``--tables`` prints the tables of the file as Markdown. ``--task FILE``
scores tasks (ctx, choices, gold) on their first ``--items``; ``--search-task FILE`` is for the way that chooses by answers.

- Equal parameters: a ratio becomes the number of layers that comes nearest; sublayers go up to the parameters of as many.
- Every way reads the same ``--tokens`` of the calibration slice; losses after the cut are KL to the teacher, per token, of the
  plain cut and after ``--repair`` (``auto``, the default's, with a fixed ridge) on ``evaluation``, on which nothing is chosen.
  A repair of a set is made once, whoever chose it and at whatever call. Layer 0 and the last layer stay.
- A search runs at most ``--evaluations`` sets; scores that need more are left out. Seconds are processor seconds of the choice
  alone, on one thread. Every search begins without values of another; a table of scores is made once for all ratios, and each
  way that reads it is charged for the whole of it.
- Where all sets can be run (``--most-sets``), the optimum by KL on the search text, and how far each way is from it.
- ``scores``: rank correlation of each score of single units with what a unit costs alone and on average over random sets.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from choose_bench import Bench
from choose_cells import RATIOS, UNITS, cells
from choose_losses import measured
from choose_tables import tables

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).parent
SETTINGS = ("tokens", "judged", "fit_tokens", "length", "orders", "evaluations", "repair", "draws")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=MODEL[:TEXT]")
    parser.add_argument("--tokens", type=int, default=2048, help="that every way to choose reads")
    parser.add_argument("--judged", type=int, default=4096, help="of the evaluation text")
    parser.add_argument("--fit-tokens", type=int, default=8192, help="of the repair")
    parser.add_argument("--repair", default="auto", help="of every set: auto, refit")
    parser.add_argument("--draws", type=int, default=5, help="random sets of a group")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--orders", type=int, default=8, help="random sets of the correlations")
    parser.add_argument("--evaluations", type=int, default=400, help="most sets of one search or score")
    parser.add_argument("--most-sets", type=int, default=1100, help="run all sets where there are at most so many")
    parser.add_argument("--task", action="append", default=[], type=Path)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--search-task", type=Path, help="whose items the score windowed_task asks; left out without it")
    parser.add_argument("--search-items", type=int, default=50, help="its last ones, so that others are judged on")
    parser.add_argument("--cells", type=int, default=math.inf)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no cell after so many")
    parser.add_argument("--ratio", action="append", type=int, choices=RATIOS, help="these alone")
    parser.add_argument("--units", action="append", choices=UNITS, help="these alone")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "choose.json")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"cells": {}}
    if options.tables:
        print("\n".join(tables(results)))
        return
    if any("windowed_task" in one for one in options.only) and options.search_task is None:
        parser.error("windowed_task asks a task to choose by: give --search-task FILE")
    given = dict(one.split("=", 1) for one in options.model)
    settings = {key: getattr(options, key) for key in SETTINGS}
    for name in given:
        known = results.get("settings", {}).get(name, settings)
        if known != settings:
            parser.error(f"cells of {name} stand that were measured with {known}; give the same, or another --out")
    run(options, results, given, settings)


def run(options: argparse.Namespace, results: dict[str, Any], given: dict[str, str], settings: dict[str, Any]) -> None:
    """Every cell that is asked for and not there yet."""
    from shoal.words.records import write_atomically

    benches = {
        name: Bench(where.partition(":")[0], where.partition(":")[2], options, sets_of(results, name))
        for name, where in given.items()
    }
    n_done, began = 0, time.monotonic()
    for cell in cells(list(benches), options):
        if cell.name in results["cells"] or not all(word in cell.name for word in options.only):
            continue
        if n_done >= options.cells or time.monotonic() - began > options.seconds:
            break
        started = time.monotonic()
        results["cells"][cell.name] = measured(benches[cell.model], cell)
        results.setdefault("settings", {})[cell.model] = settings
        options.out.parent.mkdir(exist_ok=True)
        write_atomically(options.out, (json.dumps(results, indent=1) + "\n").encode())
        n_done += 1
        print(f"{cell.name}: {time.monotonic() - started:.1f} s", flush=True)


def sets_of(results: dict[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """Losses of the sets of a model that stand in the file, by their units."""
    of_choice = {"units", "sets", "seconds", "losses"}
    rows = [
        row for name, one in results["cells"].items() if name.startswith(f"{model} | ") for row in (one, *one.get("draws", ()))
    ]
    return {
        " ".join(row["units"]): {key: value for key, value in row.items() if key not in of_choice}
        for row in rows
        if "units" in row
    }


if __name__ == "__main__":
    main()
