"""``shoal.heal``: a healing asked for by name, and what the student's own run says of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.edits.plan import Plan
from shoal.engine.opening import Opening
from shoal.export.found_plan import REQUEST
from shoal.run.folder import CHOSEN, checkpoint_of
from shoal.run.healing.heal_request import HealRequest
from shoal.train.heal.presets import PRESETS
from shoal.words.progress import Progress, told
from shoal.words.reading import at_home, read_json, refuse_other_than_plan
from shoal.words.refusal import in_one_line
from shoal.words.structure import units_off

if TYPE_CHECKING:
    from shoal.run.healing.heal_checkpoint import Healed


@in_one_line
def heal(
    student: str | Path,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    text: Any = None,
    opening: Opening = Opening(),
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> Healed:
    """Train a cut model with its teacher or on text: a checkpoint in, a checkpoint out.

    ``heal("runs/default", "healed", text="mine.jsonl", tokens=1_000_000)`` is all that most need.

    Args:
        student: hub id, checkpoint folder, or the folder of a run (its ``model/``), whose plan names the teacher.
        out: run folder: new, empty, or left by an earlier healing, which is continued.
        teacher: the reference; ``"none"``: train on text alone. Unless given, the source of the student's plan.
        text: a file, a list of them, or the fields of a recipe's ``text``; the bundled sample unless given.
        opening: device, precision and layers in memory are the teacher's; the student keeps its checkpoint's, all in memory.
        overwrite: stages that stand with other inputs may be replaced.
        command: recorded in ``run.json`` and on the card.
        progress: called with (what, done, total); unless given, lines are printed in a notebook and nothing elsewhere.
        options: ``method``, ``tokens``, ``lr`` and every other field of :class:`shoal.train.heal.config.HealConfig`, as
            ``shoal heal --help`` lists them; ``preset``, a paper's way to heal, which they override; ``plan``, the file of the
            plan that made the student; ``seed``; ``speed=False``, time nothing.
    Raises:
        ValueError: one line for anything the user can mend.
        ImportError: an extra that is not installed, named.
    """
    texts = dict(text) if isinstance(text, Mapping) else {"sources": text}
    request = request_of(str(student), None if teacher is None else str(teacher), texts, **options)
    refuse_without_teacher(request, opening.resident)
    for said in grown_back(request):
        warnings.warn(said.removeprefix("Warning: "), stacklevel=3)
    from shoal.run.healing.heal_checkpoint import heal_checkpoint  # This imports torch, and a wrong request is refused before.

    with told(progress):
        return heal_checkpoint(request, out, opening=opening, overwrite=overwrite, command=command)


def request_of(
    student: str,
    teacher: str | None,
    text: Mapping[str, Any],
    *,
    plan: str | Path | None = None,
    preset: str | None = None,
    seed: int | None = None,
    speed: bool = True,
    **options: Any,
) -> HealRequest:
    """What the options ask for, on top of a preset; the student's run says its plan and, where no option does, its teacher.

    Raises:
        ValueError: an option that is not allowed, with the values that are.
    """
    beside, healed_by = _origin(at_home(Path(checkpoint_of(student))))
    found = beside
    if plan is not None:
        found = at_home(Path(plan))
        refuse_other_than_plan(found, "give the plan.json of the run that made the student")
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
    request = HealRequest.from_json(json.dumps(content, default=str), where="options")
    refuse_unheard(options, request)
    return request


def _origin(checkpoint: Path) -> tuple[Path | None, str | None]:
    """The plan in or beside a checkpoint, or that of the student which was healed into it, and the teacher of that healing."""
    run = checkpoint.parent
    for folder in (checkpoint, run):
        if (folder / CHOSEN).is_file():
            return folder / CHOSEN, None
    stated = read_json(run / REQUEST) if (run / REQUEST).is_file() else {}
    plan, teacher = Path(str(stated.get("plan"))), stated.get("teacher")
    is_there = plan.is_absolute() and plan.is_file()
    return plan if is_there else None, teacher if isinstance(teacher, str) else None


def grown_back(request: HealRequest) -> Iterator[str]:
    """A warning where sublayers that the plan took out are maps of zeros that this training would fill."""
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
