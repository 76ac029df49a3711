"""How much text a greedy search needs: the layers it lets go, in order, on growing text, and what such sets lose after repair.

    OMP_NUM_THREADS=1 python benchmarks/search_text.py MODEL TEXT --name SmolLM2-135M --tokens 512,1024 --spans 12..18,8..19

KL per token to the teacher, of the plain cut and after ``refit``, on ``evaluation``; beside the sets of the search stand the
spans that are named. Resumable: each order and each set is written to ``--out`` as soon as it is known. Seconds are processor
seconds on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from choose_bench import Bench
from choose_losses import judged

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

OUT = Path(__file__).parent / "results" / "search_text.json"


def order_of(bench: Bench, count: int) -> dict[str, Any]:
    """The layers that go one after the other, the loss after each, and the seconds until then."""
    from shoal.select.request import Request

    n_layers = bench.size.n_layers
    free = Request(n_layers=n_layers, n=count, protected=frozenset({0, n_layers - 1})).free_units
    value, started, off = bench.value(free), time.process_time(), frozenset()
    found: dict[str, Any] = {"layers": [], "kl": [], "seconds": []}
    while len(off) < count:
        grown = [off | {unit} for unit in free if unit not in off]
        losses = value.values(grown)
        best = min(range(len(grown)), key=losses.__getitem__)
        (new,) = grown[best] - off
        off = grown[best]
        for key, item in (("layers", new.index), ("kl", losses[best]), ("seconds", time.process_time() - started)):
            found[key].append(item)
    return found


def layers_of(span: str) -> list[int]:
    """``12..18``, the last one included."""
    first, last = span.split("..")
    return list(range(int(first), int(last) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--name", required=True, help="of the model in the file")
    parser.add_argument("--tokens", default="512,1024", help="that every set is run on")
    parser.add_argument("--counts", default="3,7,12,15", help="layers of the sets that are repaired")
    parser.add_argument("--spans", default="", help="to compare with, such as 12..18,8..19")
    parser.add_argument("--judged", type=int, default=6144)
    parser.add_argument("--fit-tokens", type=int, default=16384)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    options = SimpleNamespace(
        tokens=512, evaluations=None, repair="refit", task=[], **{k: vars(asked)[k] for k in ("judged", "fit_tokens", "length")}
    )
    bench = Bench(asked.model, asked.text, options, {})  # type: ignore[arg-type]
    results = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    here = results.setdefault(asked.name, {"judged": asked.judged, "fit_tokens": asked.fit_tokens, "orders": {}, "sets": {}})

    def save() -> None:
        asked.out.write_text(json.dumps(results, indent=1) + "\n")

    counts = [int(one) for one in asked.counts.split(",")]
    sets = {tuple(layers_of(span)) for span in filter(None, asked.spans.split(","))}
    for tokens in map(int, asked.tokens.split(",")):
        if str(tokens) not in here["orders"]:
            options.tokens = tokens
            bench.__dict__.pop("searched", None)
            here["orders"][str(tokens)] = order_of(bench, max(counts))
            save()
        order = here["orders"][str(tokens)]["layers"]
        sets |= {tuple(sorted(order[:n])) for n in counts if n <= len(order)}
        print(f"{tokens:,} tokens: {order}")
    for layers in sorted(sets, key=lambda one: (len(one), one)):
        name = " ".join(map(str, layers))
        if name not in here["sets"]:
            here["sets"][name] = repaired(bench, layers)
            save()
        print(f"{name}: {here['sets'][name]['kl']:.3f}, repaired {here['sets'][name]['kl_repaired']:.3f}", flush=True)


def repaired(bench: Bench, layers: tuple[int, ...]) -> dict[str, float]:
    from shoal.words.types import Unit

    found = judged(bench, None, [Unit("layer", layer) for layer in layers])  # type: ignore[arg-type]
    return {key: found[key] for key in ("kl", "kl_repaired", "kl_repaired_stderr", "repair_seconds")}


if __name__ == "__main__":
    main()
