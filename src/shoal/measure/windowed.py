"""Windows: growth of the loss at the ends of runs of units that are off together.

Source: Investigating Layer Importance (arXiv 2409.14381), which calls it Shapley. It looks at nearly whole models alone, and
its values do not add up to the loss of everything. With windows of one unit it is leave-one-out; on an additive function it is
exact.
"""

import numpy as np

from shoal.measure.set_function import SetFunction
from shoal.words.types import UnitTable


def windowed_growth(function: SetFunction, *, most: int = 3) -> UnitTable:
    """The value of unit i: the mean, over all windows of up to ``most`` units that begin or end with i, of
    loss(window off) - loss(window without i off). It asks for 1 + sum over l = 1..most of (M - l + 1) sets.

    Raises:
        ValueError: no window, or one longer than all units.
    """
    units = function.units
    if not 1 <= most <= len(units):
        raise ValueError(f"windows of {most} units need 1..{len(units)}")
    windows = [units[i : i + n] for n in range(1, most + 1) for i in range(len(units) - n + 1)]
    sets = [frozenset(window) for window in windows]
    loss = dict(zip([frozenset(), *sets], function.values([frozenset(), *sets]), strict=True))
    growths: dict[int, list[float]] = {i: [] for i in range(len(units))}
    for window in windows:
        whole = frozenset(window)
        for unit in {window[0], window[-1]}:
            growths[units.index(unit)].append(loss[whole] - loss[whole - {unit}])
    return UnitTable(
        criterion="windowed",
        units=units,
        values=np.array([np.mean(growths[i]) for i in range(len(units))]),
        stderr=np.full(len(units), np.nan),
        unit="growth of the loss",
        higher_is_more_redundant=False,
        n_samples=0,
    )
