"""The plan that a checkpoint was made by, from the files of its run, and whether it was trained afterwards.

A run's ``plan.json`` is the cut as it was chosen; what was done to it later stands in files beside it. Whoever reads the first
alone takes a repaired student for a plain cut.
"""

from pathlib import Path

from shoal.edits.plan import Plan
from shoal.words.reading import read_json

PLANS = ("pruned.json", "fitted.json", "plan.json")  # The first that is there says most.
HEALED = "heal.json"
REQUEST = "heal.request.json"
LATER = {"fitted.json": "repaired", "pruned.json": "thinned", HEALED: "trained"}  # The file, and what was done by then.
CUT = "cut"  # A run that healed keeps the student as it was before under this name.


def found_plan(checkpoint: Path) -> tuple[Plan | None, bool]:
    """The plan of a checkpoint folder, None where nothing says how it came, and whether its values were trained after that.

    A plan is looked for in the folder itself, in the run folder it is the ``model`` of, and where that run only healed, in the
    run of the student that was healed.
    Raises:
        ValueError: a plan that cannot be read.
    """
    run = checkpoint.absolute().parent
    is_model = checkpoint.absolute().name == "model"
    if (checkpoint / "plan.json").is_file():
        return _plan_in(checkpoint), False
    if checkpoint.absolute().name == CUT and (run / HEALED).is_file():
        return _plan_in(run), False
    if not is_model:
        return None, False
    if (run / REQUEST).is_file():
        stated = read_json(run / REQUEST).get("plan")
        before = Path(stated) if isinstance(stated, str) else None
        # A relative path would be one from wherever the command ran then.
        return (_plan_in(before.parent) if before is not None and before.is_absolute() else None), True
    return _plan_in(run), (run / HEALED).is_file()


def done_beyond(plan: Path) -> tuple[str, ...]:
    """What the run of a ``plan.json`` did to the student that this file does not say: repaired, thinned, trained."""
    if plan.name != "plan.json":
        return ()
    return tuple(what for name, what in LATER.items() if (plan.parent / name).is_file())


def _plan_in(folder: Path) -> Plan | None:
    return next((Plan.load(folder / name) for name in PLANS if (folder / name).is_file()), None)
