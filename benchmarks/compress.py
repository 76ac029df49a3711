"""The main job on real models: the default, and training behind it, against the same cut without repair, on held-out text.

    python benchmarks/compress.py --model A=text.txt --model B=text.txt [--drop 25%] [--fit-tokens N] [--train-tokens N]

Every model is compressed by the recipes ``default``, ``polished`` and ``high``, and by the closed forms of the default alone
(``heal: none``); checkpoints are reloaded by plain transformers.
Without ``--model`` the bundled model and text are used, and the results go to a file of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from shoal import compress, load_recipe
from shoal.run.job import bundled_model, versions
from shoal.words.records import write_atomically

HERE = Path(__file__).parent
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "closed forms": ("default", {"heal": "none"}), "default": ("default", {}),
    "polished": ("polished", {}), "high": ("high", {}),
}  # fmt: skip
"""Recipes with what differs, by their names in the results."""


def measure(name: str, model: str, text: str, *, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    more: dict[str, Any] = {"text": {"sources": [text]}} if text else {}
    started = time.monotonic()
    recipe, own = RECIPES[name]
    outcome = compress(load_recipe(recipe, {**changes, **more, **own, "model": model}), folder)
    seconds = time.monotonic() - started
    _, info = AutoModelForCausalLM.from_pretrained(outcome.model, output_loading_info=True)
    assert not any(info.values()), info
    found, plan = outcome.evaluation, outcome.plan
    plain = found.plain or found.quality  # A repair that was undone leaves the plain cut.
    return {
        "recipe": name,
        "layers": [plan.before.layers, plan.after.layers],
        "parameters": [plan.before.parameters, plan.after.parameters],
        "removed": list(plan.removed_layers),
        "kl_without_repair": plain.kl,
        "kl": found.quality.kl,
        "kl_stderr": found.quality.kl_stderr,
        "agreement": [plain.agreement, found.quality.agreement],
        "perplexity": [found.teacher.perplexity.value, plain.perplexity, found.student.perplexity.value],
        "fit_tokens": outcome.repaired.n_tokens if outcome.repaired else 0,
        "trained_tokens": sum(one.n_tokens for one in outcome.trained),
        "healed_tokens": outcome.healed.training.n_tokens if outcome.healed else 0,
        "seconds": round(seconds, 1),
        "candidates": [
            {"layers": list(c.layers), "kl": c.kl, "kl_plain": c.kl_plain, "proposed_by": list(c.proposed_by)}
            for c in plan.candidates
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="PATH=TEXT")
    parser.add_argument("--drop", default="25%")
    parser.add_argument("--fit-tokens", type=int, default=None)
    parser.add_argument("--train-tokens", type=int, default=None)
    parser.add_argument(
        "--recipes", type=lambda text: text.split(","), default=list(RECIPES), help="the rows of others in the file are kept"
    )
    parser.add_argument("--out", type=Path, help="default: results/compress.json, or compress-bundled.json")
    args = parser.parse_args()
    out = args.out or HERE / "results" / ("compress.json" if args.model else "compress-bundled.json")
    changes = {"drop": args.drop, "fit": {"tokens": args.fit_tokens}, "train": {"tokens": args.train_tokens}}
    rows = [row for row in json.loads(out.read_text())["rows"] if row["recipe"] not in args.recipes] if out.exists() else []
    for one in args.model or [f"{bundled_model()}="]:
        model, _, text = one.partition("=")
        for recipe in args.recipes:
            healing = {"heal": {"tokens": args.train_tokens}} if recipe == "high" else {}
            with tempfile.TemporaryDirectory() as folder:
                row = measure(recipe, model, text, changes={**changes, **healing}, folder=Path(folder) / "run")
            rows.append({"model": Path(model).name, "text": Path(text).name or "bundled", **row})
            figures = f"KL without repair {row['kl_without_repair']:.4f}, with {row['kl']:.4f}"
            print(f"{Path(model).name:16} {recipe:8} {row['layers']}  {figures}  {row['seconds']:.0f} s", flush=True)
            content = {"versions": versions(), "threads": torch.get_num_threads(), **changes, "rows": rows}
            write_atomically(out, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
