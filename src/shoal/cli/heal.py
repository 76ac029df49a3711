"""The verb ``heal``: training after the cut, a checkpoint in and a checkpoint out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from shoal.cli.groups import MachineOptions, ResultOptions, TextOptions
from shoal.cli.heal_options import HealConfigOptions
from shoal.cli.option import argument, option
from shoal.cli.options import LengthOption, NoSpeedOption, OutOption, SeedOption
from shoal.cli.verb import command_line, given, verb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shoal.run.healing.heal_checkpoint import Healed
    from shoal.run.healing.heal_request import HealRequest
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
    student: Annotated[str, argument("STUDENT", "Checkpoint folder, hub id, or a run folder (its model/).")],
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
    from shoal.run.begin import BUNDLED_TEXT
    from shoal.run.healing.heal_checkpoint import heal as heal_checkpoint

    screen = result.screen()
    options = given(config)
    preset = options.pop("preset")
    options |= {"lr": _rate(options["lr"]), **{name: options[name] or None for name in ("keep_zeros", "checkpointing")}}
    texts = {"sources": text.text, "field": text.field, "length": length}
    request = request_of(student, origin.teacher, origin.plan, texts, options, preset=preset, seed=seed, speed=not no_speed)
    refuse_without_teacher(request, machine.resident)
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


def request_of(
    student: str,
    teacher: str | None,
    plan: Path | None,
    text: dict[str, Any],
    options: dict[str, Any],
    *,
    preset: str | None = None,
    seed: int | None = None,
    speed: bool = True,
) -> HealRequest:
    """What the options ask for, on top of a preset; the student's run says its plan and, where no option does, its teacher.

    Raises:
        ValueError: an option that is not allowed, with the values that are.
    """
    import json

    from shoal.edits.plan import Plan
    from shoal.run.comparing import checkpoint_of
    from shoal.run.healing.heal_request import HealRequest
    from shoal.train.heal.presets import PRESETS
    from shoal.words.reading import refuse_other_than_plan

    beside, healed_by = _origin(Path(checkpoint_of(student)).parent)
    found = plan if plan is not None else beside
    if plan is not None:
        refuse_other_than_plan(plan, "give the plan.json of the run that made the student")
    if teacher is None:
        teacher = healed_by or (Plan.load(found).source if found is not None else None)
    if teacher is None:
        raise ValueError(f"{student} has no plan beside it that names its teacher; give --teacher MODEL, or --teacher none")
    given = PRESETS.named(preset).for_model(teacher) if preset is not None else {}
    given.update({name: value for name, value in options.items() if value is not None})
    seeded = {} if seed is None else {"seed": seed}
    content = {
        "student": student,
        "teacher": None if teacher == "none" else teacher,
        "plan": None if found is None or teacher == "none" else str(found.absolute()),
        "text": {name: value for name, value in text.items() if value is not None},
        "heal": given | seeded,
        "speed": speed,
        **seeded,
    }
    request = HealRequest.from_json(json.dumps(content), where="options")
    refuse_unheard(options, request)
    return request


def _origin(run: Path) -> tuple[Path | None, str | None]:
    """The plan beside a checkpoint, or that of the student which was healed into it, and the teacher of that healing."""
    from shoal.export.found_plan import REQUEST
    from shoal.words.reading import read_json

    if (run / "plan.json").is_file():
        return run / "plan.json", None
    stated = read_json(run / REQUEST) if (run / REQUEST).is_file() else {}
    plan, teacher = Path(str(stated.get("plan"))), stated.get("teacher")
    is_there = plan.is_absolute() and plan.is_file()
    return plan if is_there else None, teacher if isinstance(teacher, str) else None


def grown_back(request: HealRequest) -> Iterator[str]:
    """A warning where sublayers that the plan took out are maps of zeros that this training would fill."""
    from shoal.edits.plan import Plan
    from shoal.words.structure import units_off

    if request.plan is None or request.heal.keep_zeros or request.heal.method == "norms":
        return
    gone = sorted(units_off(Plan.load(Path(request.plan)).structure))
    if gone:
        named = ",".join(f"{unit.kind}:{unit.index}" for unit in gone)
        yield f"Warning: {named} went and are maps of zeros, which this training fills again; --keep-zeros keeps them out"


def refuse_unheard(options: Mapping[str, Any], request: HealRequest) -> None:
    """Raises ValueError for an option that was given and that this healing does not read: it would be dropped in silence."""
    unread = dict(request.heal.unread())
    if request.teacher is None:
        unread["teacher_cache"] = "there is no teacher"
    heard = [name for name, value in options.items() if value is not None and name in unread]
    if heard:
        raise ValueError(f"--{heard[0].replace('_', '-')} is not read: {unread[heard[0]]}; leave it out")


def refuse_without_teacher(request: HealRequest, resident: str) -> None:
    """Raises ValueError for an option that is about the teacher, where there is none."""
    if request.teacher is not None:
        return
    unread = {"--resident": resident != "auto", "--no-speed": not request.speed}
    found = next((name for name, is_given in unread.items() if is_given), None)
    if found is not None:
        raise ValueError(f"{found} is not read: it is about the teacher, and there is none; leave it out")


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
