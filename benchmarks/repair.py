"""Closed-form repairs of one cut: KL to the teacher on text of another file, and how it was won.

    python benchmarks/repair.py MODEL --fit-text train.txt.gz --text val.txt --layers 4 5 6 7 8 9 [--tokens N]

All rows share the cut, the text of the fit and the text of the measure. Nothing is chosen on the latter.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from shoal.decoder import DecoderView, Student
from shoal.decoder.open import open_model
from shoal.fit.config import FitConfig
from shoal.fit.place import MapKind
from shoal.fit.sweep import sweep_layers
from shoal.fit.targets import before_cuts, from_first_cut
from shoal.plan import Drop, Plan, Size
from shoal.run.inputs import versions
from shoal.score.oracle import Oracle
from shoal.text import open_corpus
from shoal.types import Unit

HERE = Path(__file__).parent
BATCH = 32

MLP: tuple[MapKind, ...] = ("mlp",)
BOTH: tuple[MapKind, ...] = ("attn", "mlp")
THRICE: tuple[MapKind, ...] = ("mlp", "attn", "mlp")
ROWS = (
    ("refit, MLP map alone", before_cuts, MLP, "relative"),
    ("refit, MLP map alone, plain weights", before_cuts, MLP, "plain"),
    ("refit: attention map, MLP map", before_cuts, BOTH, "relative"),
    ("refit: MLP, attention, MLP map", before_cuts, THRICE, "relative"),
    ("sweep: attention map, MLP map", from_first_cut, BOTH, "relative"),
    ("sweep: MLP, attention, MLP map", from_first_cut, THRICE, "relative"),
    ("sweep: MLP, attention, MLP map, plain weights", from_first_cut, THRICE, "plain"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--fit-text", required=True)
    parser.add_argument("--text", required=True, help="for the measure")
    parser.add_argument("--layers", type=int, nargs="+", required=True, help="removed, 0-based")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--samples", type=int, default=200, help="of the measure")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "repair.json")
    args = parser.parse_args()

    opened = open_model(args.model)
    view = DecoderView(opened.model)
    n_samples = -(-args.tokens // args.length)
    fit = open_corpus(args.fit_text, opened.tokenizer).samples("training", n=n_samples, length=args.length)
    measure = open_corpus(args.text, opened.tokenizer).samples("evaluation", n=args.samples, length=args.length, fewest=8)
    oracle = Oracle(view, measure.batches(BATCH))
    size = Size(layers=view.n_layers, parameters=sum(p.numel() for p in opened.model.parameters()))
    plan = Plan(
        source=opened.name, source_hash=opened.fingerprint, teacher=opened.name, n_layers=view.n_layers,
        edits=(Drop(indices=tuple(args.layers)),), before=size, after=size,
    )  # fmt: skip
    cut = Student(removed=frozenset(Unit("layer", layer) for layer in args.layers))
    started = time.monotonic()
    rows: list[dict[str, object]] = [{"repair": "none"} | figures(oracle, cut)]
    forward = (time.monotonic() - started) / measure.n_tokens * fit.n_tokens / 2  # teacher and student, with the head
    for name, targets, maps, weigh in ROWS:
        started = time.monotonic()
        swept = sweep_layers(view, cut, fit.batches(BATCH), targets=targets(plan), kinds=maps, config=FitConfig(weights=weigh))
        seconds = time.monotonic() - started
        layers = [one.model_dump(mode="json") for one in swept.layers]
        repaired = Student(removed=cut.removed, overrides=swept.values)
        rows.append({"repair": name, "seconds": seconds, **figures(oracle, repaired), "layers": layers})
        print(f"{name:48} KL {rows[-1]['kl']:.4f}  {seconds:.0f} s", flush=True)
        content = {
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "model": Path(args.model).name,
            "removed": args.layers,
            "fit_text": {"data": Path(args.fit_text).name, "hash": fit.data_hash, "tokens": fit.n_tokens},
            "text": {"data": Path(args.text).name, "hash": measure.data_hash, "tokens": measure.n_tokens},
            "forward_seconds_of_the_fit_text": forward,
            "rows": rows,
        }
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(content, indent=2) + "\n")


def figures(oracle: Oracle, student: Student) -> dict[str, float]:
    found = oracle.measure([student])[0]
    return {"kl": found.kl, "kl_stderr": found.kl_stderr, "agreement": found.agreement, "perplexity": found.perplexity}


if __name__ == "__main__":
    main()
