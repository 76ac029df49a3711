"""A whole run folder without a model: every file that a report reads, with values from a formula and texts that are given."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from shoal.checkpoint.verify import Verification
from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate, Plan
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.evaluate.cost import Cost
from shoal.evaluate.curve.ratio_curve import Cliff, RatioCurves, RatioPoint
from shoal.evaluate.evaluation import Evaluation, Figures
from shoal.evaluate.generate import Generation
from shoal.evaluate.perplexity import Perplexity
from shoal.evaluate.speed import AtDepth, Rates, Speed
from shoal.evaluate.tasks.answers import TaskAnswers, TaskFacts
from shoal.evaluate.tasks.benchmark import Benchmark, compare_tasks
from shoal.evaluate.tasks.choice import PairScore, answers_of_scores
from shoal.evaluate.tasks.task_files import Task, TaskItem
from shoal.fit.fit_result import FitResult, LayerFit, MapFit
from shoal.measure.anatomy import Anatomy
from shoal.measure.oracle import Quality
from shoal.measure.scan import Scan
from shoal.run.curve.over_ratios import Keeping, conclude
from shoal.run.folder import RunRecord, StageRecord
from shoal.run.stages.report import read_run
from shoal.show.report import page as report_page
from shoal.train.config import TrainConfig
from shoal.train.train_result import CurvePoint, TrainResult, TrainResults, save_curve
from shoal.words.records import Provenance
from shoal.words.structure import Size
from shoal.words.types import SpanTable

PLAIN = "a plain text"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{7*7}}&amp;\x00\x1b\u202e\r\nend"


def provenance(text: str = PLAIN, **rest) -> Provenance:
    facts = dict(
        model="org/model",
        model_hash="m0",
        data=text,
        data_hash="d0",
        n_samples=3,
        n_tokens=96,
        length=32,
        seed=7,
        dtype="float32",
    )
    return Provenance(**{**facts, **rest}, versions={"torch": "2.13.0"})


def span_table(n_layers: int, criterion: str, tokens: str, *, higher: bool = False, seed: int = 0) -> SpanTable:
    draw = np.random.default_rng(seed)
    values = np.full((n_layers + 1, n_layers + 1), np.nan)
    upper = np.triu_indices(n_layers + 1, k=1)
    values[upper] = draw.random(len(upper[0]))
    return SpanTable(criterion, tokens, values, values / 10, "pi rad", higher, 3)


def scan(n_layers: int = 8, text: str = PLAIN) -> Scan:
    names = (
        ("cosine", "rest", True),
        ("cosine", "every", True),
        ("angular", "last", False),
        ("block_influence", "rest", False),
    )
    tables = [span_table(n_layers, c, t, higher=h, seed=k) for k, (c, t, h) in enumerate(names)]
    ends = n_layers + 1
    norms = tuple(1.0 + 3.25 * i for i in range(ends))
    found = Anatomy(
        norm_rest=norms, norm_rest_stderr=tuple(0.01 * n for n in norms), norm_sink=tuple(100 * n for n in norms),
        norm_sink_stderr=tuple(n for n in norms), n_massive=tuple(range(ends)), n_sinks=5, n_tokens=96, n_zero=0, n_samples=3,
    )  # fmt: skip
    return Scan({one.name: one for one in tables}, found, provenance(text))


def plan(*edits, n_layers: int = 8, text: str = PLAIN) -> Plan:
    edits = edits or (Drop(indices=(4, 5)),)
    return Plan(
        source="org/model", source_hash="m0", teacher="org/model", n_layers=n_layers, edits=edits,
        before=Size(layers=n_layers, parameters=1000), after=Size(layers=n_layers - 2, parameters=800), method=text,
        candidates=(
            Candidate(edits=(Drop(indices=(4, 5)),), proposed_by=("span cosine/rest", text), scores={"span cosine/rest": 0.875},
                      kl=0.125, kl_stderr=0.015625, perplexity=7.5),
            Candidate(edits=(Drop(indices=(2, 3)),), proposed_by=("span angular/last",), kl=0.25, perplexity=8.25),
            Candidate(edits=(Drop(indices=(1, 6)),), proposed_by=("lowest",), kl=float("inf"), perplexity=float("inf")),
        ),
    )  # fmt: skip


def benchmark(text: str = PLAIN) -> Benchmark:
    """40 items of three options; teacher and student each miss every fifth, not the same ones."""
    items = [
        TaskItem(key=f"{i:016x}", line=i + 1, ctx=f"{text} {i}", choices=(" a", " b", " c"), gold=i % 3) for i in range(40)
    ]
    task = Task(name="quiz", path=Path("quiz.jsonl"), form="choice", items=tuple(items), data_hash="0123456789abcdef")

    def answers(miss: int) -> TaskAnswers:
        found = []
        for i, item in enumerate(items):
            likely = [-3.0 - (i + k) % 4 / 8 for k in range(3)]
            likely[item.gold] = -9.0 if i % 5 == miss else -1.0
            found.append([PairScore(value, -value / 4, False) for value in likely])
        return answers_of_scores(task, found, n_truncated=1)

    return compare_tasks([answers(0)], [answers(1)], n_resamples=50)


def evaluation(text: str = PLAIN, *, tasks=None) -> Evaluation:
    def figures(name: str, layers: int, ppl: float) -> Figures:
        cost = Cost(layers=layers, parameters=125 * layers, weight_bytes=500 * layers, context=32, macs_per_token=90.0 * layers,
                    kv_bytes_per_token=64.0 * layers)  # fmt: skip
        return Figures(
            name=name, cost=cost, perplexity=Perplexity(value=ppl, nll=np.log(ppl), n_tokens=95, window=32, stride=16)
        )

    def rates(fast: float) -> Rates:
        return Rates(prefill=(100 * fast, 110 * fast, 90 * fast), decode=(10 * fast, 12 * fast, 11 * fast))

    def depth(layers: int, fast: float) -> AtDepth:
        return AtDepth(layers=layers, rates=rates(fast))

    speed = Speed(teacher=rates(1.0), student=rates(1.25), depths=(depth(1, 4.0), depth(4, 1.75)),
                  teacher_layers=8, student_layers=6, batch_size=1, prompt_length=16,
                  new_tokens=4, device="cpu", dtype="float32", n_threads=1)  # fmt: skip
    quality = Quality(kl=0.125, kl_stderr=0.0078125, agreement=0.75, nll=2.0, perplexity=7.389, n_tokens=93, n_samples=3)
    return Evaluation(
        teacher=figures("teacher", 8, 6.5), student=figures("student", 6, 7.25), quality=quality,
        plain=quality.model_copy(update={"kl": 0.5}), speed=speed, tasks=tasks, provenance=provenance(text),
        generations=(
            Generation(prompt=text, teacher=f"same {text}", student=f"same then other {text}", n_agreed=1, n_tokens=9),
            Generation(prompt="p", teacher="equal", student="equal", n_agreed=2, n_tokens=2),
        ),
    )  # fmt: skip


def fit_result(text: str = PLAIN) -> FitResult:
    one = MapFit(parameters=("mlp.down_proj.weight",), ridge=0.01, r2=0.5, r2_folds=0.4375, condition=9.0, effective_rank=4.0,
                 n_tokens=90, n_sinks=3, held_out_error=0.0625)  # fmt: skip
    layers = (LayerFit(layer=3, target=6, error_before=0.125, error_after=0.0625, maps=(one,), n_kept=1, seconds=0.5),)
    return FitResult(repair="sweep", layers=layers, skipped=(text,), n_samples=4, n_tokens=90, data=text, data_hash="f0",
                     kl_before=0.5, kl_after=0.125)  # fmt: skip


def curve() -> tuple[CurvePoint, ...]:
    points = []
    for k in range(4):
        seen = {} if k == 0 else {"loss": 4.0 / k, "grad_norm": 0.5}
        start = CurvePoint(step=4 * k, tokens=128 * k, lr=0.001 * (k + 1), loss=None, grad_norm=None, validation=8.0 / (k + 1),
                           quality=0.5 / (k + 1), seconds=0.25 * k)  # fmt: skip
        points.append(start.model_copy(update=seen))
    return tuple(points)


def train_results(text: str = PLAIN) -> TrainResults:
    one = TrainResult(
        start=4,
        stop=7,
        trained=("layer in place of 4..6",),
        objective="hidden_mse",
        decided_by="quality",
        best_step=12,
        n_steps=12,
        n_tokens=384,
        n_parameters=9,
        seconds=0.75,
        data=text,
        data_hash="t0",
        config=TrainConfig(lr=1e-3, min_lr=1e-4),
        curve=curve(),
    )
    return TrainResults(results=(one,))


def ratio_curves(text: str = PLAIN) -> RatioCurves:
    """Two methods, four cuts; the second one breaks between 2 and 3 layers. One task of 20 items."""
    n_tokens = (31, 31, 30)
    task = TaskFacts(task=text, form="choice", data_hash="t", n_items=20, chance=0.25)

    def point(method: str, n: int) -> RatioPoint:
        loss = 0.125 * n + (2.0 if method == "uidl" and n > 2 else 0.0)
        quality = Quality(
            kl=loss, kl_stderr=0.0625, agreement=0.75, nll=2.0 + loss, perplexity=math.exp(2 + loss), n_tokens=92, n_samples=3
        )
        return RatioPoint(
            method=method,
            n_net=n,
            share=n / 8,
            layers_out=tuple(range(4, 4 + n)),
            size=Size(layers=8 - n, parameters=1000 - 125 * n),
            quality=quality,
            kl=tuple(loss * t for t in n_tokens),
            nll=tuple((2 + loss) * t for t in n_tokens),
            right={text: tuple(i % (n + 2) > 0 for i in range(20))},
            plan=f"points/{n}/plan.json" if n else None,
            seconds=1.0,
        )

    bare = RatioCurves(
        drop="0..50%", counts=(1, 2, 3, 4), recipes={"none": {}, "uidl": {}}, before=Size(layers=8, parameters=1000),
        n_tokens=n_tokens, tasks=(task,), teacher=point("teacher", 0), provenance=provenance(text), n_resamples=40,
        points=tuple(point(method, n) for method in ("none", "uidl") for n in (1, 2, 3, 4)),
    )  # fmt: skip
    cliff = Cliff(method="uidl", of="kl", found=True, support=1.0, last=0.25, first=0.375, last_n=2, first_n=3, low=0.25,
                  high=0.375, rise=2.0)  # fmt: skip
    return conclude(bare, keep=Keeping(0.8, "perplexity")).model_copy(update={"cliffs": (cliff,)})


def write_curves(folder: Path, text: str = PLAIN) -> Path:
    """The folder of a finished `shoal curve`."""
    folder.mkdir(parents=True, exist_ok=True)
    scan(8, text).save(folder)
    ratio_curves(text).save(folder / "curve.json")
    RunRecord(version="0", command="shoal curve org/model --out s", versions={"torch": "2.13.0"}).save(folder / "run.json")
    return folder


def write_run(folder: Path, text: str = PLAIN, *, kind: str = "plain", n_layers: int = 8) -> Path:
    """A finished run: ``plain`` removal, a ``repair`` in closed form, or a trained ``layer``; always with tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    scan(n_layers, text).save(folder)
    edits = {
        "plain": (Drop(indices=(4, 5)),),
        "repair": (Drop(indices=(4, 5)), Refit(layer=3, parameters=("mlp.down_proj.weight",))),
        "layer": (Replace(start=4, stop=7, replacement="layer"),),
    }[kind]
    plan(*edits, n_layers=n_layers, text=text).save(folder / "plan.json")
    if kind == "repair":
        fit_result(text).save(folder / "fit.json")
    if kind == "layer":
        train_results(text).save(folder / "fit.json")
        save_curve(folder / "train" / "4-7" / "curve.jsonl", curve())
    evaluation(text).save(folder / "evaluation.json")
    evaluation(text, tasks=benchmark(text)).save(folder / "tasks.json")
    checked = Verification(
        path="model", dtype="float32", size=Size(layers=n_layers - 2, parameters=750), n_tensors=11, logit_difference=0.0,
        logit_tolerance=0.5, cache_difference=0.25, cache_tolerance=0.5, tokens_equal=True, n_tokens=9,
    )  # fmt: skip
    checked.save(folder / "verification.json")
    stages = {name: StageRecord(key="k", seconds=1.5) for name in ("scan", "plan", "model", "evaluation")}
    RunRecord(
        version="0", command=f"shoal compress org/model --text {text!r}", versions={"torch": "2.13.0"}, stages=stages
    ).save(folder / "run.json")
    (folder / "recipe.yaml").write_text(json.dumps({"model": "org/model", "about": text, "by": "cosine/rest"}))
    return folder


def html_of(folder):
    """The page of a run folder."""
    return report_page.page(read_run(folder))


def raw(folder, name):
    """A file of a run folder as JSON."""
    return json.loads((folder / name).read_text())
