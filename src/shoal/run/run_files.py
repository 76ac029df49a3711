"""What a run folder holds of a student: the plan with everything that was done to it, and the values beside it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from shoal.edits.plan import Plan
from shoal.engine.tensors import each_tensor
from shoal.run.folder import CHOSEN
from shoal.run.stages.fit import FITTED, VALUES
from shoal.run.stages.polish import TRAINED
from shoal.run.stages.predict import PREDICTED
from shoal.run.stages.prune import PRUNED, pruned_values

CURVES = "curve.json"
"""What `shoal curve` leaves in its folder, beside a folder for each of its points."""


def plan_file(folder: Path) -> Path:
    """The plan of a run folder with its zeros and refits, where there are any; else as it was chosen."""
    return next((folder / name for name in (PRUNED, FITTED) if (folder / name).is_file()), folder / CHOSEN)


def values_for(plan: Plan, folder: Path) -> dict[str, Tensor]:
    """The values of a plan in its folder: trained ones where they were, else of the closed form, else predicted; and zeros.

    Those of edits that the plan does not have are left alone: the values of a repair lie beside the plan it was made from, too.
    """
    file = next((folder / name for name in (TRAINED, VALUES, PREDICTED) if (folder / name).exists()), None)
    found = {**(dict(each_tensor(file)) if file is not None else {}), **pruned_values(folder)}
    return {name: value for name, value in found.items() if any(edit.owns(name) for edit in plan.edits)}
