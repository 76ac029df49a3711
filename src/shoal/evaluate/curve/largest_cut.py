"""The largest measured cut that keeps a wanted share of the teacher's quality, said with the interval in mind.

What is kept (``retained``) is defined per measure in :func:`shoal.evaluate.curve.ratio_curve.curve_of`. Every point is a cut
that was made and measured, so the answer is one of them and nothing is interpolated; a smaller cut that keeps less does not
count against it.
"""

import math
from collections.abc import Callable

from shoal.evaluate.curve.ratio_curve import KeptCut, RatioCurve, RetainedShare
from shoal.evaluate.intervals import LEVEL, Interval
from shoal.words.numbers import percent, percents


def largest_cut(curve: RatioCurve, *, method: str, keep: float) -> RetainedShare:
    """The largest cuts that keep ``keep`` of the teacher's quality likely, certainly, possibly.

    Raises:
        ValueError: the teacher has nothing right, so that no share of it can be told.
    """
    refuse_nothing_right(curve.of, math.isfinite(curve.retained_P[0]))
    cuts = [
        KeptCut(n_net=n, share=float(curve.share_P[place]), retained=curve.retained(place)) for place, n in enumerate(curve.n_P)
    ]

    def last(bound: Callable[[Interval], float]) -> KeptCut | None:
        passed = [cut for cut in cuts if bound(cut.retained) >= keep]
        return passed[-1] if passed else None

    return RetainedShare(
        method=method,
        of=curve.of,
        keep=keep,
        likely=last(lambda one: one.value),
        certain=last(lambda one: one.low),
        possible=last(lambda one: one.high),
    )


def refuse_nothing_right(of: str, has_any: bool) -> None:
    """Raises ValueError when the teacher has no item right, so that no share of it can be kept."""
    if not has_any:
        raise ValueError(f"the teacher has no item of {of!r} right; --keep needs another --of")


def sentence(kept: RetainedShare) -> str:
    """For people: the cut, its figure with interval, and what is certain."""
    wanted = f"{100 * kept.keep:g} % of {kept.of}"
    if kept.likely is None or kept.likely.n_net == 0:
        said = f"{kept.method}: no measured cut keeps {wanted}"
    else:
        one = kept.likely.retained
        said = f"{kept.method}: the largest cut that keeps {wanted} is {_cut(kept.likely)}: {percents(one)} %"
    if kept.certain != kept.likely:
        certain = "no cut" if kept.certain is None or not kept.certain.n_net else _cut(kept.certain)
        said += f"; certain at {100 * LEVEL:g} % for {certain}"
    if kept.possible != kept.likely and kept.possible is not None and kept.possible.n_net:
        said += f"; not excluded up to {_cut(kept.possible)}"
    return said + ("; but the teacher is at chance here, so this says nothing about what was lost" if kept.at_chance else "")


def _cut(cut: KeptCut) -> str:
    return f"{cut.n_net} layer{'s' if cut.n_net != 1 else ''} ({percent(cut.share)} %)"
