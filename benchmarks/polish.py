"""Fit and polish against training alone, at stated tokens: KL to the teacher on text of another file.

    python benchmarks/polish.py MODEL --train-text train.txt.gz --text val.txt --layers 4 5 6 7 8 9

All rows share the cut, the text and its order; a row counts the tokens of its fit and of its training. The best step of
every training is chosen on `selection`, nothing on the text of the measure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import student_of
from shoal.engine.open import open_model
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.fit_plan import fit_plan
from shoal.fit.put_back import as_removal, put_back
from shoal.measure.oracle import Oracle
from shoal.run.job import versions
from shoal.text.corpus import open_corpus
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.loop import train_starts
from shoal.train.parts import Start
from shoal.words.structure import Size

HERE = Path(__file__).parent
BATCH = 16
FIT_TOKENS = 30_000

# name, has a replacement, is swept first, training tokens, options of the training
Row = tuple[str, bool, bool, int, dict[str, object]]
FEW: dict[str, object] = {"batch": 1, "micro_batch": 1}  # A step has one sample: with few tokens steps are what is short.
PAPER: dict[str, object] = {"lr": 2e-4, "min_lr": 5e-5, "warmup": 0.01, "betas": (0.9, 0.999), "clip": 5.0}
ROWS: tuple[Row, ...] = (
    ("sweep", False, True, 0, {}),
    ("sweep, polish hidden", False, True, 30_000, {"objective": "hidden_mse", **FEW}),
    ("sweep, polish kl", False, True, 30_000, {"objective": "forward_kl", **FEW}),
    ("sweep, polish kl", False, True, 60_000, {"objective": "forward_kl", **FEW}),
    ("layer and sweep, polish hidden", True, True, 30_000, {"objective": "hidden_mse", **FEW}),
    ("layer and sweep, polish hidden", True, True, 60_000, {"objective": "hidden_mse", **FEW}),
    ("layer and sweep, polish kl", True, True, 60_000, {"objective": "forward_kl", **FEW}),
    (
        "layer and sweep, polish hidden, then kl",
        True,
        True,
        60_000,
        {"stages": [{"objective": "hidden_mse", "tokens": 40_000}, {"objective": "forward_kl", "tokens": 20_000}], **FEW},
    ),
    ("layer, hidden, one sample a step", True, False, 60_000, FEW),
    ("layer, hidden, one sample a step", True, False, 90_000, FEW),
    ("layer, hidden, four samples a step", True, False, 300_000, {}),
    ("layer, hidden, lr 1e-3", True, False, 300_000, {"lr": 1e-3}),
    ("layer, hidden, the paper's rates", True, False, 300_000, PAPER),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train-text", required=True, help="for fit, training and selection")
    parser.add_argument("--text", required=True, help="for the measure")
    parser.add_argument("--layers", type=int, nargs="+", required=True, help="removed, 0-based, consecutive, not the first")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--samples", type=int, default=200, help="of the measure")
    parser.add_argument("--selection", type=int, default=40, help="samples the best step is chosen on")
    parser.add_argument("--rows", default="", help="only those whose name contains this; others stay as they stand in --out")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "polish.json")
    args = parser.parse_args()

    opened = open_model(args.model)
    view = DecoderView(opened.model)
    corpus = open_corpus(args.train_text, opened.tokenizer)
    most = max(tokens for _, _, _, tokens, _ in ROWS)
    training = corpus.samples("training", n=-(-most // args.length), length=args.length)
    fit = training.take(-(-FIT_TOKENS // args.length))
    selection = corpus.samples("selection", n=args.selection, length=args.length)
    measure = open_corpus(args.text, opened.tokenizer).samples("evaluation", n=args.samples, length=args.length, fewest=8)
    oracle, judge = (Oracle(view, one.batches(BATCH)) for one in (measure, selection))
    first, stop = args.layers[0] - 1, args.layers[-1] + 1
    size = Size(layers=view.n_layers, parameters=sum(p.numel() for p in opened.model.parameters()))
    plans = [
        Plan(
            source=opened.name, source_hash=opened.fingerprint, teacher=opened.name, n_layers=view.n_layers,
            edits=(edit,), before=size, after=size,
        )
        for edit in (Drop(indices=tuple(args.layers)), Replace(start=first, stop=stop, replacement="layer"))
    ]  # fmt: skip
    began = time.monotonic()
    swept = fit_plan(view, plans[0], fit, repair="sweep", batch_size=BATCH)
    fit_seconds = time.monotonic() - began
    assert as_removal(plans[1]).removed_layers == plans[0].removed_layers
    starts = {}
    for replaced, plan in enumerate(plans):
        repaired = put_back(view, plan, swept)
        starts[bool(replaced), True] = student_of(view, repaired.plan, repaired.values)
        starts[bool(replaced), False] = student_of(view, plan)
    content = {
        "versions": versions(),
        "model": Path(args.model).name,
        "removed": args.layers,
        "train_text": {"data": Path(args.train_text).name, "hash": training.data_hash},
        "text": {"data": Path(args.text).name, "hash": measure.data_hash, "tokens": measure.n_tokens},
        "fit": {"tokens": fit.n_tokens, "seconds": fit_seconds},
        "none": figures(oracle, starts[False, False]),
    }
    done = json.loads(args.out.read_text())["rows"] if args.rows and args.out.exists() else []
    rows = [one for one in done if args.rows not in one["repair"]]
    for name, replaced, is_swept, tokens, options in ROWS:
        if args.rows not in name:
            continue
        start = starts[replaced, is_swept]
        student, about = trained(view, start, training, selection, tokens=tokens, options=options, judge=judge)
        row = {"repair": name, "tokens": tokens + is_swept * fit.n_tokens, **about, **figures(oracle, student)}
        rows.append(row)
        print(f"{name:48} {row['tokens']:>8,} tokens  KL {row['kl']:.4f}  {row['seconds']:.0f} s", flush=True)
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


def trained(
    view: DecoderView,
    start: Student,
    training: Samples,
    selection: Samples,
    *,
    tokens: int,
    options: dict[str, object],
    judge: Oracle,
) -> tuple[Student, dict[str, object]]:
    """A row's student, trained from its start (without tokens the start itself), and what the training was."""
    if not tokens:
        return start, {"seconds": 0.0, "steps": 0}
    config = TrainConfig.model_validate({**({} if "stages" in options else {"tokens": tokens}), **options})
    began = time.monotonic()
    (one,) = train_starts(
        view, [Start(start)], training=training, selection=selection, config=config,
        quality=lambda student: judge.measure([student])[0].kl,
    )  # fmt: skip
    found = one.result
    return one.student, {
        "seconds": time.monotonic() - began,
        "steps": found.n_steps,
        "best_step": found.best_step,
        "n_parameters": found.n_parameters,
        "stages": [stage.model_dump(mode="json") for stage in found.config.schedule()],
    }


def figures(oracle: Oracle, student: Student) -> dict[str, float]:
    found = oracle.measure([student])[0]
    return {"kl": found.kl, "kl_stderr": found.kl_stderr, "agreement": found.agreement, "perplexity": found.perplexity}


if __name__ == "__main__":
    main()
