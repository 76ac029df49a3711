"""The verb ``heal``: training after the cut, a checkpoint in and a checkpoint out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from shoal.cli.early import model_argument
from shoal.cli.groups import MachineOptions, ResultOptions, TextOptions
from shoal.cli.heal_options import HealConfigOptions
from shoal.cli.option import option
from shoal.cli.options import LengthOption, NoSpeedOption, OutOption, SeedOption
from shoal.cli.verb import command_line, given, verb

if TYPE_CHECKING:
    from shoal.run.healing.heal_checkpoint import Healed
    from shoal.show.table import Table


@dataclass(frozen=True)
class OriginOptions:
    """What the student was made from."""

    teacher: Annotated[
        str | None, option("MODEL", "Reference model, or none for text alone.", "the source of the student's plan")
    ] = None
    plan: Annotated[Path | None, option("FILE", "Plan that made the student.", "plan.json of its run folder")] = None


@verb
def heal(
    student: Annotated[str, model_argument("STUDENT", "Checkpoint folder, hub id, or a run folder (its model/).")],
    out: OutOption,
    config: HealConfigOptions,
    text: TextOptions,
    machine: MachineOptions,
    result: ResultOptions,
    origin: OriginOptions,
    length: LengthOption = None,
    seed: SeedOption = None,
    no_speed: NoSpeedOption = False,
) -> None:
    """Train a cut model with its teacher or on text: checkpoint in, checkpoint out."""
    from shoal.run.healing.requested import grown_back, refuse_without_teacher, request_of

    screen = result.screen()
    options = given(config)
    preset = options.pop("preset")
    options |= {"lr": _rate(options["lr"]), **{name: options[name] or None for name in ("keep_zeros", "checkpointing")}}
    texts = {"sources": text.text, "field": text.field, "length": length}
    stated = {"plan": origin.plan, "preset": preset, "seed": seed, "speed": not no_speed}
    request = request_of(student, origin.teacher, texts, **stated, **options)
    refuse_without_teacher(request, machine.resident)

    from shoal.run.begin import BUNDLED_TEXT
    from shoal.run.healing.heal_checkpoint import heal_checkpoint

    if not request.text.sources:
        screen.say(BUNDLED_TEXT)
    for said in grown_back(request):
        screen.say(said)
    with screen.progress():
        healed = heal_checkpoint(
            request,
            out,
            opening=machine.spread,
            overwrite=result.overwrite,
            command=command_line(),
            say=screen.say,
        )
    show_healed(screen, healed)


def _rate(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--lr {text!r} needs a number, or auto") from None


def show_healed(screen: Any, healed: Healed) -> None:
    """Learning rates that were tried, the training, the merge, the figures and where the files are."""
    from shoal.show.before_after import before_after, drift_table

    training, merging = healed.training, healed.merging
    if training.rates:
        screen.show(rate_table(healed))
    screen.say(f"Healed: {training}")
    if training.cached is not None:
        screen.say(f"Teacher: {training.cached}")
    if training.quantised is not None:
        screen.say(f"Teacher: {training.quantised}")
    screen.say(f"Speed: {training.tokens_per_second:,.0f} training tokens/s, {training.peak_bytes / 1e9:.2f} GB at most")
    for one in merging.trials:
        kept = "taken" if one.way == merging.way else "not taken"
        screen.say(f"Merge {one.way}: {training.decided_by} {one.lost:+.5f} nats per token, {kept}")
    if healed.model is None:
        least = min((one.lost for one in merging.trials), default=None)
        why = "as asked" if least is None else f"it lost {least:.3g} nats per token, more than --most-lost allows"
        screen.say(f"Not merged ({why}); the adapter is the result: load it beside the student with peft")
    if healed.evaluation is not None and healed.before is not None:
        screen.show(before_after(healed.before, healed.evaluation))
    if healed.drift is not None:
        screen.show(drift_table(healed.drift))
    files = [("checkpoint", healed.model), ("adapter", healed.adapter), ("training", healed.folder / "heal.json")]
    files.append(("report", healed.folder / "report.html"))
    for what, path in files:
        if path is not None:
            screen.say(f"{what + ':':<12}{path}")
    screen.result(
        {
            "model": healed.model and str(healed.model),
            "training": training.model_dump(mode="json"),
            "merging": merging.model_dump(mode="json"),
            "before": healed.before and healed.before.model_dump(mode="json"),
            "repaired": healed.repaired,
            "evaluation": healed.evaluation and healed.evaluation.model_dump(mode="json"),
            "drift": healed.drift and healed.drift.model_dump(mode="json"),
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
