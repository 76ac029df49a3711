"""The headline of a run: what was removed, what it cost, what it buys. The model card and the report both say these figures."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from shoal.edits.plan import Plan
from shoal.edits.prune import Prune
from shoal.evaluate.evaluation import Evaluation
from shoal.evaluate.speed import Speed, SpeedPhase
from shoal.evaluate.tasks.benchmark import Benchmark
from shoal.prune.thin_result import ThinResult
from shoal.show.markdown import coded
from shoal.words.numbers import change, in_bytes, number, percent, short, times
from shoal.words.structure import inserted, units_off, units_said


@dataclass(frozen=True)
class Fact:
    """One figure in large: its name, the value, and what it rests on or is to be compared with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """What a run did, in a sentence and in figures. ``cost`` and ``gain`` are empty before the evaluation.

    Speed and sizes of a model that grew are what it costs, and it gains none.

    Attributes:
        changed: the heading over what was done to the layers.
    """

    name: str
    summary: str
    removed: tuple[Fact, ...]
    cost: tuple[Fact, ...] = ()
    gain: tuple[Fact, ...] = ()
    changed: str = "What was removed"


def headline(
    plan: Plan,
    evaluation: Evaluation | None = None,
    tasks: Benchmark | None = None,
    *,
    thinned: ThinResult | None = None,
) -> Headline:
    """The figures of a plan and, where there are any, of its evaluation and of tasks (the evaluation's own unless given).

    Args:
        thinned: the record of its zeros.
    """
    name, before, after = source_name(plan.source), plan.before, plan.after
    smaller = 1 - after.parameters / before.parameters
    kept = f"{after.layers} of its {before.layers} layers and {percent(smaller)} % fewer parameters "
    changed = "What was removed"
    if inserted(plan.structure):
        changed = "What was removed and put in" if plan.removed_layers else "What was put in"
        kept = f"{after.layers} layers in place of its {before.layers} and {percent(abs(smaller))} % "
        kept += f"{'more' if smaller < 0 else 'fewer'} parameters "
    kept += f"({before.parameters:,} → {after.parameters:,})"
    off = units_off(plan.structure)
    if after.layers == before.layers and (off or thinned):
        kept = f"all of its {before.layers} layers"
    without = (
        f", of which {units_said(off)} is switched off (its output map is zero, so the files keep its size)" if off else ""
    )
    zeros = "" if thinned is None else f", and {percent(thinned.total.share)} % of the weights of its maps are zero"
    summary = f"This is {coded(name)} with {kept}{without}{zeros}, made with Shoal."
    removed: tuple[Fact, ...] = (
        Fact("Layers", f"{before.layers} → {after.layers}", str(plan)),
        Fact("Parameters", change(after.parameters, before.parameters), f"{before.parameters:,} → {after.parameters:,}"),
    )
    if thinned is not None:
        found = thinned.total
        note = f"{found.n_zeros:,} of {found.n_weights:,} weights of the maps, by {thinned.config.method}"
        removed = (*removed, Fact("Zeros", f"{percent(found.share)} %", note))
    if evaluation is None:
        return Headline(name, summary, removed, changed=changed)
    cost = _cost(evaluation, tasks or evaluation.tasks)
    gain = (*_rates(evaluation), *_sizes(evaluation, stores_all=bool(off)))
    if inserted(plan.structure) and smaller < 0:
        cost, gain = (*cost, *gain), ()  # A larger model is slower and takes more memory: nothing of that is bought.
    return Headline(name, summary, removed, cost, gain, changed)


def became(plan: Plan) -> str:
    """What became of the source, in two words."""
    if inserted(plan.structure):
        return "made deeper" if plan.after.layers > plan.before.layers else "with new layers"
    is_cut = plan.removed_layers or plan.removed_units or not any(isinstance(edit, Prune) for edit in plan.edits)
    return "made shallower" if is_cut else "thinned out"


def source_name(source: str) -> str:
    """The model's name for others: a hub id, also from the hub's cache; of a local folder only its own name."""
    return hub_id(source) or Path(source).resolve().name


def hub_id(source: str) -> str | None:
    """The model's id on the hub, also from the hub's cache; None of what lies on this machine alone."""
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots", source)
    if cached:
        return cached[1].replace("--", "/", 1)
    is_hub_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source) and not Path(source).exists()
    return source if is_hub_id else None


def _cost(evaluation: Evaluation, tasks: Benchmark | None) -> tuple[Fact, ...]:
    quality, plain = evaluation.quality, evaluation.plain
    error = "" if math.isnan(quality.kl_stderr) else f"± {quality.kl_stderr:.2g} "
    text = f"; {quality.n_tokens:,} tokens of {quality.n_samples} samples were read"
    unrepaired = "" if plain is None else f", {short(plain.kl)} without repair"
    before, after = evaluation.teacher.perplexity.value, evaluation.student.perplexity.value
    facts = [
        Fact("KL to the teacher", short(quality.kl), f"{error}nats per token{unrepaired}; 0 is the teacher itself{text}"),
        Fact("Same most likely token", f"{percent(quality.agreement)} %", f"of {quality.n_tokens:,} tokens"),
        Fact("Perplexity", f"x {after / before:.3f}", f"{number(before)} → {number(after)}"),
    ]
    kept = tasks.retained if tasks else None
    if tasks and kept is not None:
        note = f"{percent(kept.low)} to {percent(kept.high)} %, average of {_tasks(len(tasks.counted))}"
        facts.append(Fact("Accuracy kept", f"{percent(kept.value)} %", note))
    return tuple(facts)


def _rates(evaluation: Evaluation) -> tuple[Fact, ...]:
    return (_rate(evaluation.speed, "decode"), _rate(evaluation.speed, "prefill")) if evaluation.speed else ()


def _sizes(evaluation: Evaluation, *, stores_all: bool) -> tuple[Fact, ...]:
    """Weights and cache, before and after.

    Args:
        stores_all: whether the checkpoint stores and runs what is switched off; its files say what its weights take, then, and
            of its cache nothing goes.
    """
    ours, theirs = evaluation.teacher.cost, evaluation.student.cost
    sizes: tuple[tuple[str, float | None, float | None, str], ...] = (
        ("Weights", ours.weight_bytes, theirs.weight_bytes, ""),
        ("KV cache", ours.kv_bytes_per_token, theirs.kv_bytes_per_token, " per token"),
    )
    if stores_all:
        sizes = (("Weights", ours.file_bytes, theirs.file_bytes, " of files"),)
    return tuple(
        Fact(label, times(after / before), f"{in_bytes(before)} → {in_bytes(after)}{unit}")
        for label, before, after, unit in sizes
        if before and after is not None
    )


def _rate(speed: Speed, phase: SpeedPhase) -> Fact:
    ratio = speed.ratio(phase)
    label = {"decode": "Decoding speed", "prefill": "Prefill speed"}[phase]
    rounds = f"{len(speed.teacher.decode)} rounds, {speed.device}"
    note = f"{ratio.low:.2f} to {ratio.high:.2f} ({rounds}); bound {speed.bound(phase):.2f}"
    return Fact(label, times(ratio.value), note)


def _tasks(n: int) -> str:
    return "1 task" if n == 1 else f"{n} tasks"
