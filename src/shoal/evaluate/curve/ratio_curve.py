"""Quality against the share that was removed: the record of `shoal curve`, ``curve.json``.

Every point keeps its sums per sample and its right items per task, so intervals, cliffs and the largest cut that keeps a
quality follow from the file alone (:mod:`shoal.evaluate.curve.cliff`, :mod:`shoal.evaluate.curve.largest_cut`); all points are
resampled together.
Shapes: S samples, N items, R resamples, P points of one method, the teacher first.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.evaluate.intervals import LEVEL, N_RESAMPLES, Interval, interval_of, resampled_sums, share_of
from shoal.evaluate.tasks.answers import TaskFacts
from shoal.measure.oracle import Quality
from shoal.words.numbers import LARGEST_EXPONENT
from shoal.words.records import Provenance, Record, nearest
from shoal.words.structure import Size

ON_TEXT = ("perplexity", "kl")
"""Measures of every curve; tasks come on top, by name."""


class RatioPoint(Record):
    """One cut, chosen and repaired by one method.

    Attributes:
        method: its name there; ``teacher`` for the model itself.
        n_net: layers fewer than the teacher has.
        share: of all parameters removed, net of replacements.
        layers_out: teacher's layers that are gone.
        size: layers and parameters that are left.
        quality: over all samples.
        kl, nll: per sample, summed over its predicted tokens (``RatioCurves.n_tokens``), nats.
        right: per task, whether each item is right, in the order of the file (accuracy of choices or of last words).
        chosen: how the layers were chosen, for people.
        plan: ``plan.json`` of this point, relative to the folder of the curves; ``shoal apply`` makes the checkpoint.
        seconds: choosing, repairing and measuring; points measured in one pass share its time in equal parts.
    """

    method: str
    n_net: int
    share: float
    layers_out: tuple[int, ...]
    size: Size
    quality: Quality
    kl: tuple[float, ...]
    nll: tuple[float, ...]
    right: dict[str, tuple[bool, ...]] = {}
    chosen: str = ""
    plan: str | None = None
    seconds: float = 0.0


class Unchanged(Record):
    """``teacher.json`` beside the curves: the point at 0 %, and what all points share (see :class:`RatioCurves`)."""

    point: RatioPoint
    n_tokens: tuple[int, ...]
    tasks: tuple[TaskFacts, ...]


class Cliff(Record):
    """Where one measure of one method breaks; see :mod:`shoal.evaluate.curve.cliff` for the definition.

    Attributes:
        of: ``perplexity``, ``kl`` or a task.
        found: the two lines beat the smooth curve in at least ``level`` of the resamples.
        support: share of resamples where they do.
        last, first: removed shares of the last point before the break and of the first one behind it; None: not found.
        last_n, first_n: the same as layers removed.
        low, high: the break lies between these shares in ``level`` of the resamples.
        rise: mean loss behind the break beyond the line before it, continued (nats per token, or share of items).
        why_not: the reason where there is no cliff.
    """

    method: str
    of: str
    found: bool
    support: float = 0.0
    level: float = LEVEL
    last: float | None = None
    first: float | None = None
    last_n: int | None = None
    first_n: int | None = None
    low: float | None = None
    high: float | None = None
    rise: float | None = None
    why_not: str = ""


class KeptCut(Record):
    """A cut and the share of the teacher's quality that it keeps."""

    n_net: int
    share: float
    retained: Interval


class RetainedShare(Record):
    """The largest measured cut of one method that keeps a quality; see :mod:`shoal.evaluate.curve.largest_cut`.

    Attributes:
        keep: the share of the teacher's quality that is wanted, 0..1; ``of`` which measure.
        likely: the largest cut whose figure is at least ``keep``.
        certain: the largest cut whose whole interval is.
        possible: the largest cut whose interval reaches it.
        at_chance: the teacher is no better than guessing at this task, so nothing is said about what was lost.
    """

    method: str
    of: str
    keep: float
    likely: KeptCut | None = None
    certain: KeptCut | None = None
    possible: KeptCut | None = None
    at_chance: bool = False


class RatioCurves(Record):
    """``curve.json``: methods compared over the removed share, on one text and one set of items.

    Attributes:
        drop: the range as asked; ``counts``: the layers removed that it became.
        recipes: per method, the recipe with everything but the budget.
        before: size of the teacher.
        n_tokens: predicted tokens of every sample.
        teacher: the model itself: KL 0, its own likelihood and right items.
        points: what is measured so far, in the order of ``recipes``, then of ``counts``; an interrupted run holds fewer.
        cliffs, kept: conclusions from the points, where there are enough of them; ``kept`` where ``--keep`` was given.
        provenance: of the text that was measured on; ``seed``, ``n_resamples``: of the intervals.
    """

    drop: str
    counts: tuple[int, ...]
    recipes: dict[str, dict[str, Any]]
    before: Size
    n_tokens: tuple[int, ...]
    tasks: tuple[TaskFacts, ...] = ()
    teacher: RatioPoint
    points: tuple[RatioPoint, ...] = ()
    cliffs: tuple[Cliff, ...] = ()
    kept: tuple[RetainedShare, ...] = ()
    provenance: Provenance
    command: str = ""
    seed: int = 0
    n_resamples: int = N_RESAMPLES

    @property
    def is_complete(self) -> bool:
        """True when every method has every point."""
        return len(self.points) == len(self.recipes) * len(self.counts)

    @property
    def measures(self) -> tuple[str, ...]:
        """Everything that a curve can be drawn of."""
        return (*ON_TEXT, *(one.task for one in self.tasks))

    def of_method(self, method: str) -> tuple[RatioPoint, ...]:
        """The teacher and the method's points, by layers removed.

        Raises:
            ValueError: no such method.
        """
        if method not in self.recipes:
            raise ValueError(f"the curves have no method {method!r}; {nearest(method, self.recipes)}")
        own = sorted((one for one in self.points if one.method == method), key=lambda one: one.n_net)
        return (self.teacher, *own)


@dataclass(frozen=True)
class RatioCurve:
    """One measure along one method, the teacher first; resampled values use the same draws for all points.

    Attributes:
        share_P: removed shares; ``n_P``: layers removed.
        loss_P, loss_RP: rises as the model gets worse: nats per token (log-perplexity, KL), or the share of wrong items.
        retained_P, retained_RP: share of the teacher's quality that is kept, 1 for the teacher.
    """

    of: str
    n_P: tuple[int, ...]
    share_P: np.ndarray
    loss_P: np.ndarray
    loss_RP: np.ndarray
    retained_P: np.ndarray
    retained_RP: np.ndarray

    def retained(self, place: int) -> Interval:
        """Of one point, with its interval."""
        return interval_of(float(self.retained_P[place]), self.retained_RP[:, place])

    def loss(self, place: int) -> Interval:
        """Of one point, with its interval."""
        return interval_of(float(self.loss_P[place]), self.loss_RP[:, place])


def curve_of(curves: RatioCurves, *, method: str, of: str) -> RatioCurve:
    """A curve with its resamples.

    What is kept: ``perplexity``: the teacher's over the student's, exp(nll - nll'); ``kl``: exp(-KL). Both are geometric means
    over tokens of the share of probability that is left. A task: the student's accuracy over the teacher's.

    Raises:
        ValueError: no such method or measure.
    """
    points = curves.of_method(method)
    if of not in curves.measures:
        raise ValueError(f"the curves do not hold {of!r}; {nearest(of, curves.measures)}")
    n_P, share_P = tuple(one.n_net for one in points), np.array([one.share for one in points])
    if of in ON_TEXT:
        values_PN = [np.array(one.nll if of == "perplexity" else one.kl) for one in points]
        weight_N = np.array(curves.n_tokens, dtype=float)
    else:
        values_PN = [1.0 - np.array(one.right[of], dtype=float) for one in points]
        weight_N = np.ones(len(values_PN[0]))
    columns = np.column_stack([weight_N, *values_PN])
    total = np.array([math.fsum(column) for column in columns.T])
    sums_RK = resampled_sums(columns, n_resamples=curves.n_resamples, seed=curves.seed)
    loss_P, loss_RP = total[1:] / total[0], sums_RK[:, 1:] / sums_RK[:, :1]
    return RatioCurve(of, n_P, share_P, loss_P, loss_RP, _retained(of, loss_P), _retained(of, loss_RP))


def is_at_chance(curves: RatioCurves, of: str) -> bool:
    """True for a task where the lower bound of the teacher's accuracy is not above guessing."""
    task = next((one for one in curves.tasks if one.task == of), None)
    if task is None:
        return False
    return share_of(np.array(curves.teacher.right[of]), n_resamples=curves.n_resamples, seed=curves.seed).low <= task.chance


def _retained(of: str, loss_P: np.ndarray) -> np.ndarray:
    """Against the teacher, which comes first; NaN where the teacher has no item right."""
    if of == "perplexity":
        return np.exp(np.minimum(loss_P[..., :1] - loss_P, LARGEST_EXPONENT))
    if of == "kl":
        return np.exp(-loss_P)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((1 - loss_P) / (1 - loss_P[..., :1]))
