"""The multiple-choice scorer against one option at a time, and against lm-eval item by item where it is installed.

    python benchmarks/choice.py [--model PATH] [--task FILE.jsonl ...] [--items N] [--rounds R] [--out FILE]

Neither scores an item with an option that is longer than the model's window: those are left out before, and counted.
One option at a time: plain transformers, one forward per context and option, as simple evaluation scripts do. Without --task,
items of four options are made from the bundled text. Rounds are interleaved; printed is the median of the ratio of items per
second; no rounds, no speed. Parity: the largest difference of a log-likelihood, and the items with another answer (the option
taken, or whether the last word is greedy) or another acc_norm.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import statistics
import tempfile
import time
from dataclasses import replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.choice import PairScore, answers_of_scores, score_pairs, score_task
from shoal.evaluate.tasks.task_files import Task, load_task
from shoal.evaluate.tasks.tokenised import encode_pair, pairs_of, task_pairs
from shoal.run.job import bundled_model, versions, window_of

HERE = Path(__file__).parent


def made_task(folder: Path, n_items: int) -> Path:
    """Items of four options from the bundled text: 40 words of context, four continuations of 8 words, the first one true."""
    asset = Path(str(resources.files("shoal") / "assets" / "sample.txt.gz"))
    words = gzip.decompress(asset.read_bytes()).decode().split()
    step = len(words) // n_items
    rows = []
    for index in range(n_items):
        at = index * step
        starts = [at + 40, *((at + 40 + k * step // 4) % (len(words) - 8) for k in (1, 2, 3))]
        choices = [" " + " ".join(words[start : start + 8]) for start in starts]
        rows.append({"ctx": " ".join(words[at : at + 40]), "choices": choices, "gold": 0})
    path = folder / "bundled-4-options.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@torch.no_grad()
def one_at_a_time(model: Any, tokenizer: Any, task: Task, window: int | None) -> list[list[float]]:
    found = []
    for item in task.items:
        scores = []
        for choice in item.choices:
            context, option = encode_pair(tokenizer, item.ctx, choice)
            tokens = (context + option)[-(window + 1) :] if window else context + option
            logp_TV = model(input_ids=torch.tensor([tokens[:-1]])).logits[0].float().log_softmax(-1)
            wanted = torch.tensor(option)
            scores.append(float(logp_TV[-len(option) :].gather(-1, wanted[:, None]).double().sum()))
        found.append(scores)
    return found


def timed(model: Any, view: DecoderView, tokenizer: Any, task: Task, window: int | None, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"one_at_a_time": [], "shoal": []}
    naive: list[list[float]] = []
    ours: list[list[PairScore]] = []
    shared = False
    pairs = task_pairs(task, tokenizer=tokenizer, window=window)
    for _ in range(rounds):
        started = time.perf_counter()
        naive = one_at_a_time(model, tokenizer, task, window)
        middle = time.perf_counter()
        (ours,), shared = score_pairs(view, task_pairs(task, tokenizer=tokenizer, window=window))
        rates["one_at_a_time"].append(len(task.items) / (middle - started))
        rates["shoal"].append(len(task.items) / (time.perf_counter() - middle))
    both = [(a.loglikelihood, b) for one, other in zip(ours, naive, strict=True) for a, b in zip(one, other, strict=True)]
    ratios = [a / b for a, b in zip(rates["shoal"], rates["one_at_a_time"], strict=True)]
    return {
        "task": task.name,
        "items": len(task.items),
        "options": len(both) / len(task.items),
        "shared_context": shared,
        "truncated": sum(any(pair.n_cut for pair in options) for options in pairs),
        "items_per_second": rates,
        "ratio": statistics.median(ratios),
        "largest_difference": max(abs(a - b) for a, b in both),
    }


def against_lm_eval(view: DecoderView, tokenizer: Any, tasks: list[Task], window: int | None) -> list[dict[str, Any]]:
    """Every item of every task under lm-eval's own model of transformers and here, same model object."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from shoal.evaluate.tasks.lm_eval_tasks import lm_eval_version, quiet

    with quiet():
        other = HFLM(
            pretrained=view.model, tokenizer=copy.deepcopy(tokenizer), batch_size=8, max_length=window, device=str(view.device)
        )
    rows = []
    for task in tasks:
        (ours,) = score_task(view, task, tokenizer=tokenizer, window=window)
        asked = [
            Instance("loglikelihood", {}, (item.ctx, choice), k) for item in task.items for k, choice in enumerate(item.choices)
        ]
        said = iter(other.loglikelihood(asked, disable_tqdm=True))
        scores = [[PairScore(ll, 0.0, greedy) for ll, greedy in (next(said) for _ in item.choices)] for item in task.items]
        theirs = answers_of_scores(task, scores)
        pairs = list(zip(ours.counted.items, theirs.counted.items, strict=True))
        norms = zip(ours.norm.items, theirs.norm.items, strict=True) if ours.norm and theirs.norm else ()
        rows.append(
            {
                "task": task.name,
                "lm_eval": lm_eval_version(),
                "items": len(pairs),
                "truncated": ours.facts.n_truncated,
                "largest_difference": max(abs(x - y) for a, b in pairs for x, y in zip(a.scores, b.scores, strict=True)),
                "other_answers": sum(a.chosen != b.chosen for a, b in pairs),
                "other_acc_norm": sum(a.chosen != b.chosen for a, b in norms),
            }
        )
    return rows


def fitting(task: Task, tokenizer: Any, window: int | None) -> Task:
    """The task without the items that have an option longer than the window."""
    kept = []
    for item in task.items:
        try:
            pairs_of(item, tokenizer=tokenizer, window=window)
            kept.append(item)
        except ValueError:
            pass
    return replace(task, items=tuple(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(bundled_model()))
    parser.add_argument("--task", action="append", default=[], type=Path)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "choice.json")
    args = parser.parse_args()
    opened = open_model(args.model, Opening(dtype="float32"))
    view, tokenizer = DecoderView(opened.model), opened.need_tokenizer()
    window = window_of(view.config)
    with tempfile.TemporaryDirectory() as folder:
        whole = [load_task(path).head(args.items) for path in args.task or [made_task(Path(folder), args.items)]]
    tasks = [fitting(task, tokenizer, window) for task in whole]
    left_out = {a.name: len(a.items) - len(b.items) for a, b in zip(whole, tasks, strict=True)}
    speed = []
    for task in tasks if args.rounds else ():
        speed.append(timed(opened.model, view, tokenizer, task, window, args.rounds))
        row = speed[-1]
        print(f"{row['task']:24} x {row['ratio']:.2f}  largest difference {row['largest_difference']:.1e}")
    parity = []
    if find_spec("lm_eval"):
        parity = against_lm_eval(view, tokenizer, tasks, window)
        for row in parity:
            print(f"{row['task']:24} lm-eval: {row}")
    args.out.parent.mkdir(exist_ok=True)
    content = {
        "model": Path(args.model).name,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "window": window,
        "items_left_out": left_out,
        "speed": speed,
        "lm_eval_parity": parity,
    }
    args.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
