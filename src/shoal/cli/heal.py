"""The verb ``heal``: training after the cut, a checkpoint in and a checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from shoal.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    LengthOption,
    OutOption,
    OverwriteOption,
    RemoteOption,
    SeedOption,
    TextOption,
)
from shoal.train.heal.presets import PRESETS
from shoal.train.heal.ranks import RANKS

if TYPE_CHECKING:
    from shoal.run.healing.heal_checkpoint import Healed
    from shoal.run.healing.heal_request import HealRequest
    from shoal.show.table import Table

# Optional[...], not X | None: typer reads these at run time.
StudentOption = Annotated[
    str, typer.Argument(metavar="STUDENT", help="Checkpoint folder, hub id, or a run folder (its model/).")
]
TeacherOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--teacher", help="Reference model, or none for text alone.  [default: the source of the student's plan]"),
]
PlanOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--plan", help="Plan that made the student.  [default: plan.json of its run folder]"),
]
Method = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--method", help="lora, qlora, partial, full or norms.  [default: lora]"),
]
Tokens = Annotated[Optional[int], typer.Option("--tokens", help="Training tokens.  [default: up to 1 M]")]  # noqa: UP045
RateOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--lr", help="Peak learning rate, or auto: found by short runs.  [default: the method's, by width]"),
]
Rank = Annotated[Optional[int], typer.Option("--rank", help="Rank of adapters, on average.  [default: 16]")]  # noqa: UP045
Alpha = Annotated[Optional[float], typer.Option("--alpha", help="Scale of adapters times rank.  [default: the rank]")]  # noqa: UP045
Targets = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--targets", help="Maps that get adapters: all, mlp or attention.  [default: all]"),
]
VariantOption = Annotated[Optional[str], typer.Option("--variant", help="plain, rslora or dora.  [default: plain]")]  # noqa: UP045
Ranks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--ranks", help=f"Division of ranks among layers: {', '.join(RANKS)}.  [default: uniform]"),
]
Layers = Annotated[Optional[int], typer.Option("--layers", help="Last layers that partial trains.  [default: 3]")]  # noqa: UP045
Head = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--head", help="train or keep: the output head in partial healing.  [default: train]"),
]
ObjectiveOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--objective",
        help="Weighted sum, such as next_token + 0.5*forward_kl.  [default: forward_kl, or next_token without a teacher]",
    ),
]
Boundaries = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--boundaries", help="Where hidden states are compared: interface or every.  [default: interface]"),
]
BatchSize = Annotated[Optional[int], typer.Option("--batch", help="Samples per optimiser step.  [default: 8]")]  # noqa: UP045
MicroBatch = Annotated[Optional[int], typer.Option("--micro-batch", help="Samples per forward.  [default: 4]")]  # noqa: UP045
PresetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--preset", help=f"A paper's way to heal: {', '.join(PRESETS)}; options override it."),
]
TeacherCache = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--teacher-cache", help="Keep the teacher's N likeliest tokens of every position on disk and run it once."),
]
Pruned = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--pruned", help="Share of the adapters' input side that PRILoRA sets to zero.  [default: 0]"),
]
Patience = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--patience", help="Validations without a new best before training stops.  [default: never]"),
]
Predict = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--predict", help="all tokens, or the answers of chats (rows with messages) alone.  [default: all]"),
]
SourceOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--source", help="given: the text as it is; teacher: text that the teacher writes.  [default: given]"),
]
Temperature = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--temperature", help="Of text that the teacher writes.  [default: 1]"),
]
Processes = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--processes", help="Of several: replicate the model in each, or shard its parameters.  [default: replicate]"),
]
KeepZerosOption = Annotated[bool, typer.Option("--keep-zeros", help="Zeros of a pruned student stay zero.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Recompute activations: less memory, more time.")]
Merge = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--merge", help="original, dequantised, apart, or auto: the best measured.  [default: auto]"),
]


def heal(
    student: StudentOption,
    out: OutOption,
    teacher: TeacherOption = None,
    plan: PlanOption = None,
    method: Method = None,
    tokens: Tokens = None,
    lr: RateOption = None,
    objective: ObjectiveOption = None,
    boundaries: Boundaries = None,
    rank: Rank = None,
    alpha: Alpha = None,
    targets: Targets = None,
    variant: VariantOption = None,
    ranks: Ranks = None,
    layers: Layers = None,
    head: Head = None,
    batch: BatchSize = None,
    micro_batch: MicroBatch = None,
    merge: Merge = None,
    preset: PresetOption = None,
    teacher_cache: TeacherCache = None,
    pruned: Pruned = None,
    patience: Patience = None,
    predict: Predict = None,
    source: SourceOption = None,
    temperature: Temperature = None,
    processes: Processes = None,
    keep_zeros: KeepZerosOption = False,
    checkpointing: Checkpointing = False,
    text: TextOption = None,
    length: LengthOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Train a cut model with its teacher or on text: checkpoint in, checkpoint out."""
    import shlex
    import sys

    from shoal.cli.console import Screen
    from shoal.run.healing.heal_checkpoint import heal as heal_checkpoint

    screen = Screen(as_json=json)
    options = dict(
        method=method, tokens=tokens, lr=_rate(lr), objective=objective, boundaries=boundaries, rank=rank, alpha=alpha,
        targets=targets, variant=variant, ranks=ranks, layers=layers, head=head, batch=batch, micro_batch=micro_batch,
        merge=merge, teacher_cache=teacher_cache, pruned=pruned, patience=patience, keep_zeros=keep_zeros or None,
        checkpointing=checkpointing or None, predict=predict, source=source, temperature=temperature, processes=processes,
    )  # fmt: skip
    request = request_of(student, teacher, plan, {"sources": text, "length": length}, options, preset=preset, seed=seed)
    if not request.text.sources:
        screen.say("Text: the bundled sample of public-domain books (give your own with --text)")
    with screen.progress():
        healed = heal_checkpoint(
            request,
            out,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            command=shlex.join(["shoal", *sys.argv[1:]]),
            progress=screen.step,
        )
    show_healed(screen, healed)


def request_of(
    student: str,
    teacher: str | None,
    plan: Path | None,
    text: dict[str, Any],
    options: dict[str, Any],
    *,
    preset: str | None = None,
    seed: int | None = None,
) -> HealRequest:
    """What the options ask for, on top of a preset; the plan of the student's run folder says its teacher where no option does.

    Raises:
        ValueError: an option that is not allowed, with the values that are.
    """
    import json

    from shoal.edits.plan import Plan
    from shoal.run.comparing import checkpoint_of
    from shoal.run.healing.heal_request import HealRequest
    from shoal.train.heal.config import MICRO_BATCH
    from shoal.train.heal.presets import preset_named

    beside = Path(checkpoint_of(student)).parent / "plan.json"
    found = plan if plan is not None else beside if beside.is_file() else None
    if plan is not None and not plan.is_file():
        raise ValueError(f"no plan at {plan}; give the plan.json of the run that made the student")
    if teacher is None and found is not None:
        teacher = Plan.load(found).source
    if teacher is None:
        raise ValueError(f"{student} has no plan beside it that names its teacher; give --teacher MODEL, or --teacher none")
    given = preset_named(preset).for_model(teacher) if preset is not None else {}
    given.update({name: value for name, value in options.items() if value is not None})
    if "batch" in given and "micro_batch" not in given:  # a batch that the usual pieces do not fill is one piece
        given.update({} if given["batch"] % MICRO_BATCH == 0 else {"micro_batch": given["batch"]})
    seeded = {} if seed is None else {"seed": seed}
    content = {
        "student": student,
        "teacher": None if teacher == "none" else teacher,
        "plan": None if found is None or teacher == "none" else str(found),
        "text": {name: value for name, value in text.items() if value is not None},
        "heal": given | seeded,
        **seeded,
    }
    return HealRequest.from_json(json.dumps(content), where="options")


def _rate(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--lr {text!r} needs a number, or auto") from None


def show_healed(screen: Any, healed: Healed) -> None:
    """Learning rates that were tried, the training, the merge, the figures and where the files are."""
    training, merging = healed.training, healed.merging
    if training.rates:
        screen.show(rate_table(healed))
    screen.say(f"Healed: {training}")
    if training.cached is not None:
        screen.say(f"Teacher: {training.cached}")
    screen.say(f"Speed: {training.tokens_per_second:,.0f} training tokens/s, {training.peak_bytes / 1e9:.2f} GB at most")
    for one in merging.trials:
        kept = "taken" if one.way == merging.way else "not taken"
        screen.say(f"Merge {one.way}: {training.decided_by} {one.lost:+.5f} nats per token, {kept}")
    if healed.model is None:
        why = f"it lost more than {training.config.most_lost:g}" if merging.trials else "as asked"
        screen.say(f"Not merged ({why}); the adapter is the result: load it beside the student with peft")
    if healed.evaluation is not None:
        screen.show(figure_table(healed))
    files = [("checkpoint", healed.model), ("adapter", healed.adapter), ("training", healed.folder / "heal.json")]
    if healed.evaluation is not None:
        files.append(("report", healed.folder / "report.html"))
    for what, path in files:
        if path is not None:
            screen.say(f"{what + ':':<12}{path}")
    screen.result(
        {
            "model": healed.model and str(healed.model),
            "training": training.model_dump(mode="json"),
            "merging": merging.model_dump(mode="json"),
            "repaired": healed.repaired,
            "evaluation": healed.evaluation and healed.evaluation.model_dump(mode="json"),
        }
    )


def rate_table(healed: Healed) -> Table:
    """The short runs of ``--lr auto``."""
    from shoal.show.table import Table, numbers
    from shoal.words.numbers import number

    training = healed.training
    rows = tuple(
        (f"{one.lr:.2g}", "diverged" if one.measure is None else number(one.measure), "taken" if one.lr == training.lr else "")
        for one in training.rates
    )
    measure = f"{training.decided_by} after {training.rates[0].n_tokens:,} tokens"
    return Table("Learning rates", numbers("learning rate", measure, ""), rows)


def figure_table(healed: Healed) -> Table:
    """Teacher, student and healed student on the evaluation slice."""
    from shoal.show.table import Column, Table, numbers
    from shoal.words.numbers import number, percent

    assert healed.evaluation is not None and healed.before is not None
    both = (healed.before, healed.evaluation.quality)
    texts = healed.evaluation.teacher.perplexity.value, healed.evaluation.student.perplexity.value
    rows = (
        ("KL to the teacher, nats per token", "0", *(number(one.kl) for one in both)),
        ("top-1 agreement with the teacher", "100 %", *(f"{percent(one.agreement)} %" for one in both)),
        ("damage repaired (share of the KL)", None, None, f"{percent(healed.repaired or 0.0)} %"),
        ("perplexity", number(texts[0]), None, number(texts[1])),
    )
    return Table("Before and after, on the evaluation slice", (Column(""), *numbers("teacher", "before", "healed")), rows)
