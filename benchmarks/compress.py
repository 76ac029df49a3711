"""The main job on real models: ``layer`` against the same cut without repair, at equal net layers, on held-out text.

    python benchmarks/compress.py --model A=text.txt --model B=text.txt [--drop 25%] [--train-tokens N] [--out results.json]

Every model is compressed by the ``default`` recipe; its checkpoint is reloaded by plain transformers. Without ``--model`` the
bundled model and text are used, and the results go to a file of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from shoal import compress, load_recipe
from shoal.run.inputs import bundled_model, versions

HERE = Path(__file__).parent


def measure(model: str, text: str, *, drop: str, tokens: int | None, folder: Path) -> dict[str, object]:
    changes: dict[str, object] = {"model": model, "drop": drop, "train": {"tokens": tokens}}
    if text:
        changes["text"] = {"sources": [text]}
    started = time.monotonic()
    outcome = compress(load_recipe("default", changes), folder)
    seconds = time.monotonic() - started
    _, info = AutoModelForCausalLM.from_pretrained(outcome.model, output_loading_info=True)
    assert not any(info.values()), info
    found, plan = outcome.evaluation, outcome.plan
    assert found.plain is not None
    (trained,) = outcome.trained
    return {
        "model": Path(model).name,
        "text": Path(text).name or "bundled",
        "layers": [plan.before.layers, plan.after.layers],
        "parameters": [plan.before.parameters, plan.after.parameters],
        "removed": list(plan.removed_layers),
        "kl_none": found.plain.kl,
        "kl_layer": found.quality.kl,
        "kl_layer_stderr": found.quality.kl_stderr,
        "agreement": [found.plain.agreement, found.quality.agreement],
        "perplexity": [found.teacher.perplexity.value, found.plain.perplexity, found.student.perplexity.value],
        "trained_tokens": trained.n_tokens,
        "train_seconds": trained.seconds,
        "seconds": seconds,
        "candidates": [{"layers": list(c.layers), "kl": c.kl, "proposed_by": list(c.proposed_by)} for c in plan.candidates],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="PATH=TEXT")
    parser.add_argument("--drop", default="25%")
    parser.add_argument("--train-tokens", type=int, default=None)
    parser.add_argument("--out", type=Path, help="default: results/compress.json, or compress-bundled.json")
    args = parser.parse_args()
    out = args.out or HERE / "results" / ("compress.json" if args.model else "compress-bundled.json")
    rows = []
    for one in args.model or [f"{bundled_model()}="]:
        model, _, text = one.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(model, text, drop=args.drop, tokens=args.train_tokens, folder=Path(folder) / "run"))
        row = rows[-1]
        figures = f"KL none {row['kl_none']:.4f}  layer {row['kl_layer']:.4f}"
        print(f"{row['model']:16} {row['layers']}  {figures}  {row['seconds']:.0f} s")
    out.parent.mkdir(exist_ok=True)
    content = {"versions": versions(), "threads": torch.get_num_threads(), "drop": args.drop, "rows": rows}
    out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
