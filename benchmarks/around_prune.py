"""Width around depth at equal parameters: zeros, structured width, layers, and layers first with zeros behind them.

    OMP_NUM_THREADS=1 python benchmarks/around_prune.py MODEL --text FILE [--share 35%] [--samples N] [--only CELL] [--out FILE]

Every cell leaves the same share of the source's parameters, gone or zero, and is measured on the same held-out text: KL to the
source, perplexity. A cell that is in the file is not run again, so a run may be stopped anywhere; ``--only`` runs one,
``--seconds N`` starts none after that time. Cells that are recipes keep their run folder beside the file. For SmolLM2 the
command is the same with its folder and WikiText; each recipe takes some minutes there.

- depth: the default recipe. both: half of the share by the default, the rest by SparseGPT with OWL.
- magnitude+lamp, wanda, wanda+owl, sparsegpt, sparsegpt+owl: zeros alone.
- slicegpt, llm-pruner: structured width as in benchmarks/width_baselines.py, without training, for Llama-like models.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from shoal import compress, load_recipe
from shoal.run.job import open_inputs, versions
from shoal.words.records import write_atomically

HERE = Path(__file__).parent


def zeros(method: str, allocate: str = "uniform") -> Callable[[str], dict[str, Any]]:
    """Changes of the recipe ``wanda`` for zeros alone."""
    return lambda share: {"prune": {"method": method, "allocate": allocate, "sparsity": f"{share}%all"}}


def depth(share: str) -> dict[str, Any]:
    return {"drop": f"{share}%"}


def both(share: str) -> dict[str, Any]:
    half = f"{float(share) / 2:g}%"
    return {"drop": half, "prune": {"method": "sparsegpt", "allocate": "owl", "sparsity": f"{share}%all"}}


RECIPE_CELLS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "depth": ("default", depth),
    "sparsegpt+owl": ("wanda", zeros("sparsegpt", "owl")),
    "both": ("default", both),
    "wanda": ("wanda", zeros("wanda")),
    "sparsegpt": ("wanda", zeros("sparsegpt")),
    "magnitude+lamp": ("wanda", zeros("magnitude", "lamp")),
    "wanda+owl": ("wanda", zeros("wanda", "owl")),
}
CELLS = ("depth", "sparsegpt+owl", "both", "slicegpt", "llm-pruner", "wanda", "sparsegpt", "magnitude+lamp", "wanda+owl")
"""The most telling first: layers alone, zeros alone, both, and structured width."""


def by_recipe(cell: str, asked: argparse.Namespace, text: dict[str, Any], folder: Path) -> dict[str, Any]:
    name, changes = RECIPE_CELLS[cell]
    recipe = load_recipe(name, {**changes(asked.share), "model": asked.model, "text": text, "speed": False})
    found = compress(recipe, folder / cell.replace("+", "-"))
    before, after = found.plan.before.parameters, found.plan.after.parameters
    n_zeros = 0 if found.thinned is None else found.thinned.total.n_zeros
    quality = found.evaluation.quality
    return {
        "left": 1 - (before - after + n_zeros) / before,
        "kl": quality.kl,
        "kl_stderr": quality.kl_stderr,
        "perplexity": quality.perplexity,
        "layers": found.plan.after.layers,
    }


def by_width(cell: str, asked: argparse.Namespace, text: dict[str, Any]) -> dict[str, Any]:
    """SliceGPT and LLM-Pruner on the calibration text; measured on the same evaluation text as the recipes."""
    from width_baselines import pruned_layers, sliced, sliced_parameters, taylor_groups, width_for

    from shoal.engine.view import DecoderView
    from shoal.evaluate.evaluation import closeness
    from shoal.measure.oracle import Oracle
    from shoal.select.model_size import model_size

    inputs = open_inputs(load_recipe("default", {"model": asked.model, "text": text}))
    total, gone = model_size(inputs.view).total, Fraction(asked.share) / 100
    calibration, evaluation = inputs.batches(inputs.calibration), inputs.batches(inputs.evaluation)
    model, config = inputs.opened.model, inputs.view.config
    if cell == "slicegpt":
        kept = width_for(config, int(total * (1 - gone)))
        quality = closeness(inputs.view, DecoderView(sliced(model, calibration, kept)), evaluation).quality
        return {"left": sliced_parameters(config, kept) / total, "kept": kept, **figures(quality)}
    layer = sum(one.numel() for name, one in model.model.layers[0].named_parameters() if "norm" not in name)
    share = float(gone * total / (layer * len(pruned_layers(inputs.view.n_layers))))
    student, n_gone = taylor_groups(model, calibration, share)
    (quality,) = Oracle(inputs.view, evaluation).measure([student])
    return {"left": 1 - n_gone / total, "share": share, **figures(quality)}


def figures(quality: Any) -> dict[str, float]:
    return {"kl": quality.kl, "kl_stderr": quality.kl_stderr, "perplexity": quality.perplexity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--share", default="35", type=lambda text: text.removesuffix("%"))
    parser.add_argument("--samples", type=int, help="of every slice of the text; the default's unless given")
    parser.add_argument("--length", type=int)
    parser.add_argument("--only", choices=CELLS)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "around_prune.json")
    asked = parser.parse_args()
    text: dict[str, Any] = {"sources": [asked.text], "length": asked.length}
    text |= dict.fromkeys(("samples", "selection", "evaluation"), asked.samples)
    text = {name: value for name, value in text.items() if value is not None}
    name = f"{Path(asked.model).name} {asked.share}%"
    began = time.monotonic()
    for cell in [asked.only] if asked.only else CELLS:
        known = json.loads(asked.out.read_text()) if asked.out.exists() else {"versions": versions(), "rows": {}}
        rows = known["rows"].setdefault(name, {})
        if cell not in rows and time.monotonic() - began > asked.seconds:
            break
        if cell not in rows:
            started = time.process_time()
            folder = asked.out.with_suffix("") / name.replace(" ", "-").removesuffix("%")
            made = by_recipe(cell, asked, text, folder) if cell in RECIPE_CELLS else by_width(cell, asked, text)
            rows[cell] = made | {"cpu_seconds": round(time.process_time() - started, 1)}
            write_atomically(asked.out, (json.dumps(known, indent=1) + "\n").encode())
        row = rows[cell]
        print(
            f"{cell:16} left {row['left']:.1%}  KL {row['kl']:.4f} ± {row['kl_stderr']:.4f}  ppl {row['perplexity']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
