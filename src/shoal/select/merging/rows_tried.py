"""About how many rows a merging search runs, played on a model that is not there: for estimates of time."""

from collections.abc import Sequence

from shoal.edits.merge_rules import rule_named
from shoal.edits.table import Edit
from shoal.select.merging.by_merging import MergeSearch, Similarities, highest, in_step
from shoal.select.merging.merge_config import MergeConfig
from shoal.select.merging.row_trial import MergeRules, Row, whole_row


class EvenTrial:
    """A :class:`~shoal.select.merging.row_trial.RowTrial` in which layers that go cost alike, deeper ones a little less.

    Real similarities jump, so a real search tries another number of rows, of the same size.
    """

    def losses(self, rows: Sequence[Row]) -> list[float]:
        return [sum(self._loss(group.layers, len(row)) for group in row) for row in rows]

    @staticmethod
    def _loss(layers: Sequence[int], n_rows: int) -> float:
        return sum(0.05 * (1 - layer / (n_rows + len(layers)) / 4) for layer in layers[1:])

    def are_alike(self, layers: Sequence[int]) -> bool:
        return True

    def chose(self, similarity: float, threshold: float) -> None:
        """Nobody is told."""

    def edits(self, row: Row) -> tuple[Edit, ...]:
        return ()


def rows_tried(merging: MergeSearch, n_layers: int, n: int) -> int:
    """About how many rows are run until ``n`` of ``n_layers`` are gone."""
    trial, config = EvenTrial(), MergeConfig()
    rules, similarity = MergeRules(rule_named(config.rule), frozenset(range(n_layers)), trial.are_alike, n), Similarities(trial)

    def ends_of(thresholds: Sequence[float]) -> list[Row]:
        return in_step([merging(whole_row(n_layers), config, rules, one) for one in thresholds], similarity)

    try:
        highest(ends_of, n)
    except ValueError:
        pass  # So many cannot go, which the run says when it has tried as much.
    return len(similarity.known)
