"""Does the race choose what a comparison of all candidates in full chooses, and in what time?

    OMP_NUM_THREADS=1 python benchmarks/race.py [--model PATH=TEXT ...] [--drop 25%] [--fit-tokens N] [--out FILE]

For every model the plan stage is run twice on the same scan: all candidates repaired on a quarter of the text of the fit, as
before the race, and racing. Written: what each chose, its KL where both were measured on the same text, and the processor time.
Models that stand in the file are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from shoal.engine.opening import Opening

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WAYS = {"in full": (4,), "race": (16, 4)}


def both_ways(model: str, text: str | None, *, drop: str, fit_tokens: int) -> dict[str, Any]:
    from shoal.recipes.recipe_file import load_recipe
    from shoal.run import candidate_repair
    from shoal.run.begin import open_folder
    from shoal.run.job import open_inputs
    from shoal.run.stage import State, run_stage
    from shoal.run.stages.choose import CHOOSE
    from shoal.run.stages.scan import SCAN

    changes: dict[str, Any] = {"model": model, "drop": drop, "fit": {"tokens": fit_tokens}}
    if text:
        changes["text"] = {"sources": [text]}
    inputs = open_inputs(load_recipe("default", changes), Opening(resident="all"))
    found: dict[str, Any] = {}
    for way, shares in WAYS.items():
        candidate_repair.SHARES_FOR_RANKING = shares
        with tempfile.TemporaryDirectory() as work:
            folder = open_folder(Path(work) / "run")
            scanned = run_stage(SCAN, State(inputs), folder)
            started = time.process_time()
            plan = run_stage(CHOOSE, scanned, folder).planned
            seconds = time.process_time() - started
        rows = [
            {"layers": list(one.layers), "kl": one.kl, "kl_stderr": one.kl_stderr, "tokens": one.repaired_on}
            for one in plan.candidates
        ]
        found[way] = {"seconds": seconds, "candidates": rows}
    full, raced = (found[way]["candidates"] for way in WAYS)
    in_full = {tuple(one["layers"]): one["kl"] for one in full}
    return {
        "fit_tokens": fit_tokens,
        "equal": full[0]["layers"] == raced[0]["layers"],
        "kl_in_full_of_the_race's_choice": in_full[tuple(raced[0]["layers"])],
        "seconds_ratio": found["race"]["seconds"] / found["in full"]["seconds"],
        **found,
    }


def main() -> None:
    from shoal.run.job import bundled_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="PATH=TEXT")
    parser.add_argument("--drop", default="25%")
    parser.add_argument("--fit-tokens", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "race.json")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for given in options.model or [f"{bundled_model()}="]:
        model, _, text = given.partition("=")
        name = Path(model).name if text else "bundled"
        if name not in results:
            results[name] = both_ways(model, text or None, drop=options.drop, fit_tokens=options.fit_tokens)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
        one = results[name]
        print(f"{name}: race chose {one['race']['candidates'][0]['layers']}", end=", ", flush=True)
        print(f"{'the same' if one['equal'] else 'another'}, in {one['seconds_ratio']:.2f} of the time", flush=True)


if __name__ == "__main__":
    main()
