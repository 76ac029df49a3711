"""Do criteria choose the same layers, on which text, and at what cost? A research table of any model.

    python benchmarks/criteria.py MODEL --layers N [--text SOURCE ...] [--samples 32] [--length 256] [--out FILE]

Every criterion chooses on every text by itself, once a contiguous span of N layers and once the N layers of lowest score:
cosine (without sinks, and over every token), the angle of the last token, block influence, and the perplexity of the cut model
on the text (every layer left out alone, every span of that length). The last layer stays. Each choice is then cut and measured
on the evaluation slice of every text. Printed are the layers and KL of every choice, the overlap of every two (layers that both
remove over layers that either does), and which criterion costs least on the average; the file has it all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from shoal import load_recipe
from shoal.engine.opening import Opening
from shoal.engine.student import student_without
from shoal.engine.view import DecoderView
from shoal.measure.oracle import Oracle
from shoal.measure.scan import scan
from shoal.run.job import Inputs, open_inputs, versions
from shoal.show.table import Column, Table, numbers
from shoal.text.corpus import open_corpus
from shoal.words.records import write_atomically
from shoal.words.structure import runs_said
from shoal.words.types import Batch, Span, SpanTable

HERE = Path(__file__).parent
SCORES = ("cosine/rest", "cosine/every", "angular/last", "block_influence/rest")
PERPLEXITY = "perplexity/rest"
Shape = Literal["span", "lowest"]
SHAPES: tuple[Shape, ...] = ("span", "lowest")


@dataclass(frozen=True)
class Choice:
    """What one criterion removes after reading one text, and what that costs: KL and perplexity on every text."""

    criterion: str
    text: int
    shape: Shape
    layers: tuple[int, ...]
    kl: tuple[float, ...] = ()
    perplexity: tuple[float, ...] = ()


def chosen(table: SpanTable, n: int, shape: Shape) -> tuple[int, ...]:
    """The best span of n layers, or the n layers of best score each; of equals the deepest. The last layer stays."""
    sign = -1.0 if table.higher_is_more_redundant else 1.0
    if shape == "span":
        costs = sign * np.diagonal(table.values, offset=n)[:-1][::-1]
        start = len(costs) - 1 - int(np.nanargmin(costs))
        return tuple(range(start, start + n))
    costs = sign * np.diagonal(table.values, offset=1)[:-1][::-1]
    order = np.argsort(costs, kind="stable")[:n]
    return tuple(sorted(len(costs) - 1 - int(place) for place in order))


def perplexity_table(view: DecoderView, batches: Sequence[Batch], n: int) -> SpanTable:
    """Mean NLL of the model without each layer and without each span of n; NaN for other spans. Its order is perplexity's."""
    spans = [Span(start, start + m) for m in sorted({1, n}) for start in range(view.n_layers - m)]
    values = np.full((view.n_layers + 1, view.n_layers + 1), np.nan)
    measured = Oracle(view, batches).measure([student_without(tuple(span.layers)) for span in spans])
    for span, quality in zip(spans, measured, strict=True):
        values[span.start, span.stop] = quality.nll
    return SpanTable("perplexity", "rest", values, np.full_like(values, np.nan), "nats per token", False, len(batches))


def compare(inputs: Sequence[Inputs], n: int) -> list[Choice]:
    """Every choice with its costs; ``inputs``: one model on every text."""
    view = inputs[0].view
    if not 0 < n < view.n_layers:
        raise ValueError(f"--layers {n} needs 1..{view.n_layers - 1} for this {view.n_layers}-layer model")
    found = []
    for text, one in enumerate(inputs):
        batches = one.batches(one.calibration)
        tables = dict(scan(view, batches, provenance=one.provenance(one.calibration)).tables)
        tables[PERPLEXITY] = perplexity_table(view, batches, n)
        found += [Choice(by, text, shape, chosen(tables[by], n, shape)) for by in (*SCORES, PERPLEXITY) for shape in SHAPES]
    different = list(dict.fromkeys(one.layers for one in found))
    costs = []
    for one in inputs:
        judge = Oracle(view, one.batches(one.evaluation))
        measured = judge.measure([student_without(layers) for layers in different])
        costs.append(dict(zip(different, measured, strict=True)))
    return [
        replace(one, kl=tuple(c[one.layers].kl for c in costs), perplexity=tuple(c[one.layers].perplexity for c in costs))
        for one in found
    ]


def jaccard(a: Sequence[int], b: Sequence[int]) -> float:
    """Layers that both remove over layers that either does; 1 for equal choices, 0 for none in common."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


def choices_table(found: Sequence[Choice], names: Sequence[str]) -> Table:
    """The choices of one shape; the criterion that costs least over all texts stands in the note."""
    rows = [(f"{one.criterion} [{one.text + 1}]", runs_said(one.layers), *one.kl) for one in found]
    mean = {by: float(np.mean([kl for one in found if one.criterion == by for kl in one.kl])) for by in (*SCORES, PERPLEXITY)}
    best = min(mean, key=lambda by: mean[by])
    texts = "; ".join(f"[{i + 1}] {name}" for i, name in enumerate(names))
    note = f"Least mean KL: {best}, {mean[best]:.4g}; most: {max(mean.values()):.4g}"
    columns = (Column("criterion [text]"), Column("layers out"), *numbers(*(f"KL on [{i + 1}]" for i in range(len(names)))))
    return Table(f"{found[0].shape}, chosen and measured on {texts}", columns, tuple(rows), notes=(note,))


def overlap_table(found: Sequence[Choice]) -> Table:
    """Jaccard overlap of every two choices of one shape, in percent."""
    columns = (Column(""), *numbers(*(str(i + 1) for i in range(len(found))), form=lambda share: f"{100 * share:.0f}"))
    rows = [
        (f"{i + 1}  {one.criterion} [{one.text + 1}]", *(jaccard(one.layers, other.layers) for other in found))
        for i, one in enumerate(found)
    ]
    return Table(f"Overlap of {found[0].shape} choices, %", columns, tuple(rows))


def open_texts(model: str, texts: Sequence[str], *, samples: int, length: int, seed: int = 0) -> list[Inputs]:
    """The model opened once, with every text; the bundled sample where no text is given."""
    text: dict[str, Any] = {"samples": samples, "length": length}
    recipes = [
        load_recipe("default", {"model": model, "seed": seed, "text": {**text, "sources": [source]} if source else text})
        for source in (texts or [""])
    ]
    first = open_inputs(recipes[0], Opening(resident="all"))
    tokenizer = first.opened.need_tokenizer()
    others = [replace(first, recipe=one, corpus=open_corpus(one.text.sources[0], tokenizer, seed=seed)) for one in recipes[1:]]
    return [first, *others]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "criteria.json")
    args = parser.parse_args()
    inputs = open_texts(args.model, args.text, samples=args.samples, length=args.length)
    found = compare(inputs, args.layers)
    console, names = Console(), [one.provenance(one.calibration).data for one in inputs]
    for shape in SHAPES:
        own = [one for one in found if one.shape == shape]
        console.print(choices_table(own, names))
        console.print(overlap_table(own))
    content = {
        "model": Path(args.model).name,
        "texts": names,
        "choices": [asdict(one) for one in found],
        "versions": versions(),
    }
    write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
