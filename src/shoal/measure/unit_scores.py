"""Scores of units by name, beside the tables of spans. A new one is a file and a line here.

Those that run the model without units come once for each metric: ``left_out_kl``, ``windowed_js``, ``shapley_ce``; and once for
the answers to tasks: ``windowed_task``.

An entry says what it reads, so that callers know what a score costs: ``text`` is one pass, ``weights`` none, ``gradients`` a
pass forward and one back, ``values`` a run of the model for every unit. Plain data, free of torch: an entry's own file is
imported when it scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from shoal.measure.metrics import METRICS
from shoal.measure.task_metric import TASK, TASK_ABOUT
from shoal.words.entries import Entries, by_name
from shoal.words.late import late
from shoal.words.records import nearest
from shoal.words.types import Batch, Unit, UnitTable

if TYPE_CHECKING:
    from shoal.engine.view import DecoderView
    from shoal.measure.set_function import SetFunction

Score = Callable[["DecoderView", Sequence[Batch], Sequence[Unit]], tuple[UnitTable, ...]]
ScoreOfValues = Callable[["SetFunction"], UnitTable]
"""A score of all units of a set function, from the sets that it asks for."""


@dataclass(frozen=True)
class UnitScore:
    """An entry of the table.

    Attributes:
        about: what it measures, in one line.
        reads: what it costs.
        tables: criteria of the tables it gives.
        score: (view, text, units) to these tables; units are in the order of the model.
        papers: arXiv numbers.
        of_values: the same from a set function by ``metric``, for those that read values; None: it asks for no sets.
        n_sets: most sets that are asked for, by the number of units.
    """

    name: str
    about: str
    reads: Literal["text", "weights", "gradients", "values"]
    tables: tuple[str, ...]
    score: Score
    papers: tuple[str, ...] = ()
    of_values: ScoreOfValues | None = None
    metric: str = ""
    n_sets: Callable[[int], int] = lambda n_units: 0


def _magnitude(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, ...]:
    from shoal.measure.weight_magnitude import weight_magnitudes

    return weight_magnitudes(view, units)


UNIT_SCORES: Entries[UnitScore] = by_name(
    "score of units",
    UnitScore(
        "update",
        "norm of what a unit adds to the stream, absolute and relative",
        "text",
        ("update_norm", "relative_update"),
        late("shoal.measure.update_norm:update_norms"),
        ("2407.16286",),
    ),
    UnitScore(
        "taylor",
        "first-order change of the loss with the unit's weights at zero, weight by weight and together",
        "gradients",
        ("taylor_weights", "taylor_unit"),
        late("shoal.measure.taylor:taylor_scores"),
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
"""Those that ask for no sets; of the others there is one for each metric (:data:`OF_VALUES`)."""

N_ORDERS = 50
"""Random orders of a Shapley estimate; of up to 12 units the values are exact."""

WINDOW = 3
"""Longest window of the windowed estimator, as its paper has it."""


def _windowed(function: SetFunction) -> UnitTable:
    from shoal.measure.windowed import windowed_growth

    return windowed_growth(function, most=min(WINDOW, len(function.units)))


def _shapley(function: SetFunction) -> UnitTable:
    from shoal.measure.shapley import shapley_values

    return shapley_values(function, n_orders=N_ORDERS)


@dataclass(frozen=True)
class OfValues:
    """A score that runs the model without sets of units, whatever the metric; attributes as of :class:`UnitScore`."""

    about: str
    of_values: ScoreOfValues
    n_sets: Callable[[int], int]
    papers: tuple[str, ...]


OF_VALUES: dict[str, OfValues] = {
    "left_out": OfValues(
        "growth of the loss without the unit",
        late("shoal.measure.leave_one_out:leave_one_out"),
        lambda n: n + 1,
        ("2407.16286", "2405.17081"),
    ),
    "windowed": OfValues(
        f"mean growth of the loss at the ends of windows of up to {WINDOW} units",
        _windowed,
        lambda n: 1 + sum(n - length + 1 for length in range(1, min(WINDOW, n) + 1)),
        ("2409.14381",),
    ),
    "shapley": OfValues(
        f"Shapley value: mean growth over all orders, or over {N_ORDERS} of more than 12 units",
        _shapley,
        lambda n: 2**n if n <= 12 else N_ORDERS * (n - 1) + 2,
        ("2407.16286",),
    ),
}
"""By the word before the metric."""


def of_values_by(word: str, metric: str) -> UnitScore:
    """The score ``WORD_METRIC``, or ``WORD_task``. Raises ValueError: no such metric."""
    entry, name = OF_VALUES[word], f"{word}_{metric}"
    measured = TASK_ABOUT if metric == TASK else METRICS.named(metric).about

    def of_values(function: SetFunction) -> UnitTable:
        return replace(entry.of_values(function), criterion=name)

    def score(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, ...]:
        from shoal.measure.removals import removal_function

        if metric == TASK:
            raise ValueError(f"score {name!r} asks tasks, and is given text alone; call it on a task_function")
        found = of_values(removal_function(view, batches, units, metric=metric))
        return (replace(found, n_samples=sum(len(batch.ids_BT) for batch in batches)),)

    about = f"{entry.about}: {measured}"
    return UnitScore(name, about, "values", (name,), score, entry.papers, of_values, metric, entry.n_sets)


def unit_score_names() -> tuple[str, ...]:
    """All scores, those of every metric included."""
    return (*UNIT_SCORES, *(f"{word}_{metric}" for word in OF_VALUES for metric in (*METRICS, TASK)))


def unit_score_named(name: str) -> UnitScore:
    """Raises ValueError: no such score; lists the known ones."""
    if name in UNIT_SCORES:
        return UNIT_SCORES[name]
    if name not in unit_score_names():
        raise ValueError(f"no score of units {name!r}; {nearest(name, unit_score_names())}")
    word = next(word for word in OF_VALUES if name.startswith(f"{word}_"))
    return of_values_by(word, name.removeprefix(f"{word}_"))


def unit_tables() -> tuple[str, ...]:
    """Names of all tables that some score gives."""
    return tuple(table for name in unit_score_names() for table in unit_score_named(name).tables)


def is_unit_table(name: str) -> bool:
    """Whether a name is meant as a table of units, be there such a metric or not."""
    return any(name in one.tables for one in UNIT_SCORES.values()) or name.startswith(tuple(f"{word}_" for word in OF_VALUES))


def score_with_table(table: str) -> UnitScore:
    """The score that gives a table. Raises ValueError: none does; lists the tables."""
    found = next((one for name in unit_score_names() if table in (one := unit_score_named(name)).tables), None)
    if found is None:
        raise ValueError(f"no score of units {table!r}; {nearest(table, unit_tables())}")
    return found
