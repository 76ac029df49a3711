"""The replacement modules themselves, where their values have a closed form."""

from shoal.edits.replace.contract import Replacement
from shoal.edits.replace.table import REPLACEMENTS
from shoal.fit.repair import N_SUMS, Fit, Repair, RepairSize, TrainedOn, bytes_of_sums
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.replacement_fit import SolveReplacements

    return SolveReplacements()


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    """A module reads the stream; its own parameters are counted with the replacement."""
    return RepairSize(sums=N_SUMS * bytes_of_sums(shape.hidden, shape.hidden))


def solved_replacements() -> tuple[str, ...]:
    """Names of the replacements whose values have a closed form."""
    return tuple(name for name, kind in REPLACEMENTS.items() if kind.has_closed_form)


def conflict(replacement: Replacement | None, trained_on: TrainedOn) -> str:
    if replacement is not None and replacement.has_closed_form:
        return ""
    return (
        "repair 'solve' sets a replacement that has a closed form, and replace is "
        f"{'none' if replacement is None else replacement.name!r}; use --replace {', '.join(solved_replacements())}, or "
        "another --repair"
    )


SOLVE = Repair(
    "solve",
    f"the replacement itself, with --replace {', '.join(solved_replacements())}",
    fit,
    size,
    conflict,
    sets_replacements=True,
    compares_repaired=False,
)
