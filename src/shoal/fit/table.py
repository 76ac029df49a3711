"""The repairs by name: the one list that recipes, help, documents, the planner and the fit read. Free of torch."""

from shoal.fit.repair import Fit, Repair
from shoal.fit.repairs.auto import AUTO
from shoal.fit.repairs.bias import BIAS
from shoal.fit.repairs.magnitude import MAGNITUDE
from shoal.fit.repairs.map import MAP
from shoal.fit.repairs.none import NONE
from shoal.fit.repairs.refit_repair import REFIT
from shoal.fit.repairs.solve import SOLVE
from shoal.fit.repairs.sweep import SWEEP
from shoal.words.entries import Entries, by_name

REPAIRS: Entries[Repair] = by_name(
    "repair",
    NONE,
    AUTO,
    MAGNITUDE,
    MAP,
    BIAS,
    REFIT,
    SWEEP,
    SOLVE,
)


def fit_of(name: str) -> Fit:
    """What runs under a name.

    Raises:
        ValueError: unknown, or ``none``.
    """
    entry = REPAIRS.named(name)
    if entry.fit is None:
        raise ValueError(f"repair {name!r} sets nothing; name another one, or do not fit")
    return entry.fit()
