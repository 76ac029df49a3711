"""Scores of units by name, beside the tables of spans. A new one is a file and a line here.

An entry says what it reads, so that callers know what a score costs: ``text`` is one pass, ``weights`` none, ``gradients`` a
pass forward and one back, ``values`` a run of the model for every unit. Plain data, free of torch: an entry's own file is
imported when it scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shoal.words.records import nearest
from shoal.words.types import Batch, Unit, UnitTable

if TYPE_CHECKING:
    from shoal.engine.view import DecoderView

Score = Callable[["DecoderView", Sequence[Batch], Sequence[Unit]], tuple[UnitTable, ...]]


@dataclass(frozen=True)
class UnitScore:
    """An entry of the table.

    Attributes:
        about: what it measures, in one line.
        reads: what it costs.
        tables: criteria of the tables it gives.
        score: (view, text, units) to these tables; units are in the order of the model.
        papers: arXiv numbers.
    """

    name: str
    about: str
    reads: Literal["text", "weights", "gradients", "values"]
    tables: tuple[str, ...]
    score: Score
    papers: tuple[str, ...] = ()


def _update(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, ...]:
    from shoal.measure.update_norm import update_norms

    return update_norms(view, batches, units)


def _taylor(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, ...]:
    from shoal.measure.taylor import taylor_scores

    return taylor_scores(view, batches, units)


def _magnitude(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, ...]:
    from shoal.measure.weight_magnitude import weight_magnitudes

    return weight_magnitudes(view, units)


UNIT_SCORES: dict[str, UnitScore] = {
    one.name: one
    for one in (
        UnitScore(
            "update",
            "norm of what a unit adds to the stream, absolute and relative",
            "text",
            ("update_norm", "relative_update"),
            _update,
            ("2407.16286",),
        ),
        UnitScore(
            "taylor",
            "first-order change of the loss with the unit's weights at zero, weight by weight and together",
            "gradients",
            ("taylor_weights", "taylor_unit"),
            _taylor,
            ("2411.15558", "2402.02834"),
        ),
        UnitScore(
            "magnitude",
            "size of the weights; a baseline that does not see what they do",
            "weights",
            ("weight_l1", "weight_l2"),
            _magnitude,
            ("2411.15558",),
        ),
    )
}
"""All but leave-one-out, of which there is one score for each metric: :func:`unit_score_named` knows ``left_out_METRIC``."""

LEFT_OUT = "left_out_"


def left_out_by(metric: str) -> UnitScore:
    """Leave-one-out by a metric. Raises ValueError: no such metric."""
    from shoal.measure.metrics import metric_named

    entry = metric_named(metric)

    def score(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, ...]:
        from shoal.measure.leave_one_out import leave_one_out
        from shoal.measure.removals import removal_function

        function = removal_function(view, batches, units, metric=metric)
        return (leave_one_out(function, metric=metric, n_samples=sum(len(batch.ids_BT) for batch in batches)),)

    name = LEFT_OUT + metric
    return UnitScore(name, f"growth of the loss without the unit: {entry.about}", "values", (name,), score)


def unit_score_names() -> tuple[str, ...]:
    """All scores, leave-one-out by every metric included."""
    from shoal.measure.metrics import METRICS

    return (*UNIT_SCORES, *(LEFT_OUT + metric for metric in METRICS))


def unit_score_named(name: str) -> UnitScore:
    """Raises ValueError: no such score; lists the known ones."""
    if name in UNIT_SCORES:
        return UNIT_SCORES[name]
    if name not in unit_score_names():
        raise ValueError(f"no score of units {name!r}; {nearest(name, unit_score_names())}")
    return left_out_by(name.removeprefix(LEFT_OUT))
