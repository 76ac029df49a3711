"""What a repair costs against the forward that every repair needs, both in one process.

    python benchmarks/repair_cost.py [--width 512] [--layers 24] [--tokens 16384] [--out FILE]

A random Llama of that width on random text, which costs the same. The teacher's states are at hand; counted is what a repair
adds: as a share of the forward of all layers, and in forwards of the layers it sets. Solves are apart: they do not grow with
the text. All times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.fit_job import FitJob
from shoal.fit.repair import Fit
from shoal.fit.sites.folded_map import FoldedMapSite, find_output
from shoal.fit.sites.linear_map import LinearMap
from shoal.fit.sites.neurons import Neurons
from shoal.fit.sites.of_layer import Sites
from shoal.fit.sweep import MAPS, WHOLE_SWEEP, Sweep
from shoal.fit.targets import before_cuts
from shoal.run.job import versions
from shoal.words.structure import Size
from shoal.words.types import Batch, Unit

HERE = Path(__file__).parent
TIMED: dict[str, Fit] = {
    "map": Sweep(before_cuts, Sites(("mlp",), (find_output,))),
    "one refit": Sweep(before_cuts, Sites(("mlp",))),
    "refit": Sweep(before_cuts, Sites(MAPS)),
    "sweep": WHOLE_SWEEP,
}
"""``one refit``: the whole output map of the MLP before the cut, once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "repair_cost.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=args.width, intermediate_size=args.width * 8 // 3 // 64 * 64, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64, num_key_value_heads=args.width // 64, vocab_size=4096, head_dim=64,
    )  # fmt: skip
    view = DecoderView(LlamaForCausalLM(config).eval())
    ids_NT = torch.randint(3, 4096, (args.tokens // 256, 256))
    batches = [Batch(rows, None, index) for index, rows in enumerate(ids_NT.split(8))]
    n_out = args.layers // 4
    start = args.layers - 2 * n_out
    removed = tuple(range(start, start + n_out))
    size = Size(layers=args.layers, parameters=1)
    plan = Plan(
        source="", source_hash="", teacher="", n_layers=args.layers, edits=(Drop(indices=removed),), before=size, after=size
    )  # fmt: skip
    student = Student(removed=frozenset(Unit("layer", layer) for layer in removed))
    with torch.no_grad():
        known: dict[int, list[torch.Tensor]] = {boundary: [] for boundary in range(args.layers + 1)}
        forward = _seconds(lambda: _run(view, batches, known), repeats=2)
    per_layer = forward / args.layers
    rows = []
    for name, fit in TIMED.items():
        with _timed_solves() as solving:
            job = FitJob(view, student, batches, known=known)
            seconds = _seconds(lambda fit=fit, job=job: fit(job, plan))
        layers = 1 if name != "sweep" else args.layers - n_out - start + 1
        running = seconds - sum(solving)
        rows.append(
            {
                "repair": name,
                "seconds": seconds,
                "seconds_solving": sum(solving),
                "solves": len(solving),
                "layers": layers,
                "forwards_of_those_layers": running / (layers * per_layer),
                "share_of_the_model": running / forward,
            }
        )
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
    content = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "width": args.width,
        "intermediate": config.intermediate_size,
        "layers": args.layers,
        "removed": list(removed),
        "tokens": ids_NT.numel(),
        "forward_seconds": forward,
        "rows": rows,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(content, indent=2) + "\n")


def _run(view: DecoderView, batches: list[Batch], known: dict[int, list[torch.Tensor]]) -> None:
    for states in known.values():
        states.clear()
    for batch in batches:
        for boundary, h_BTD in view.stream(view.read(batch)):
            known[boundary].append(h_BTD)


def _seconds(work: object, *, repeats: int = 1) -> float:
    """Least CPU time of this process over repeats: other users of the machine do not count."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()  # type: ignore[operator]
        found.append(time.process_time() - started)
    return min(found)


@contextmanager
def _timed_solves() -> Iterator[list[float]]:
    """CPU seconds of every solve inside the block."""
    seconds: list[float] = []
    places = (LinearMap, FoldedMapSite, Neurons)
    plain = [place.solve for place in places]

    def timed(solve: object) -> object:
        def inner(*args: object, **options: object) -> object:
            started = time.process_time()
            found = solve(*args, **options)  # type: ignore[operator]
            seconds.append(time.process_time() - started)
            return found

        return inner

    for place, solve in zip(places, plain, strict=True):
        place.solve = timed(solve)  # type: ignore[attr-defined]
    try:
        yield seconds
    finally:
        for place, solve in zip(places, plain, strict=True):
            place.solve = solve  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
