"""A merging search as a selector: with the threshold of its paper, or with the highest one at which the budget is met.

Several thresholds are tried at once: in each round every merging that is not done says which row it wants to try, and all
rows that were not tried before are run in one reading of the text. The similarities lie in -1..1; each round of thresholds
narrows the bracket to the part between the highest that meets the budget and the lowest that does not.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from shoal.edits.merge_rules import RULES
from shoal.edits.plan import Candidate, structure_of
from shoal.edits.table import Edit
from shoal.select.merging.merge_config import MergeConfig
from shoal.select.merging.row_trial import MergeRules, Row, RowTrial, Track, n_gone, whole_row
from shoal.select.request import Evidence, Propose, Request

MergeSearch = Callable[[Row, MergeConfig, MergeRules, float], Track]

THRESHOLDS = 3
"""Thresholds of a round, between the ends of its bracket."""

ROUNDS = 4
"""Rounds: the bracket ends 1/4^4 of its first width, 0.008 in similarity."""


def by_merging(merging: MergeSearch) -> Propose:
    """The selector of a merging."""

    def propose(evidence: Evidence, request: Request) -> Iterator[Candidate]:
        trial, config = evidence.merges, request.merge
        if trial is None:
            raise ValueError(
                f"--select {request.selector} runs merged models, and nothing here can run them; use shoal compress"
            )
        rules = MergeRules(RULES.named(config.rule), frozenset(request.removable), trial.are_alike, request.n)
        similarity = Similarities(trial)

        def ends_of(thresholds: Sequence[float]) -> list[Row]:
            return in_step([merging(whole_row(request.n_layers), config, rules, one) for one in thresholds], similarity)

        if config.threshold is not None:
            row, threshold = ends_of([config.threshold])[0], config.threshold
        else:
            row, threshold = highest(ends_of, request.n)
        if not n_gone(row):
            best = max(similarity.known.values(), default=-1.0)
            raise ValueError(
                f"no merge leaves the student as similar as merge.threshold={threshold:g}; the best one tried is {best:.3f}"
            )
        edits = trial.edits(row)
        if evidence.refuse(structure_of(edits, request.n_layers)) is not None:
            return
        trial.chose(similarity.known[row], threshold)
        yield Candidate(edits=edits, proposed_by=(request.selector,), scores={"similarity": similarity.known[row]})

    return propose


class Similarities:
    """Rows to similarities, each measured once."""

    def __init__(self, trial: RowTrial) -> None:
        self._trial = trial
        self.known: dict[Row, float] = {}

    def measure(self, rows: Sequence[Row]) -> None:
        """Measure the rows that are not known, in one reading of the text."""
        new = [row for row in dict.fromkeys(rows) if row not in self.known]
        if new:
            self.known.update((row, 1 - loss) for row, loss in zip(new, self._trial.losses(new), strict=True))


def in_step(tracks: Sequence[Track], similarity: Similarities) -> list[Row]:
    """Run mergings to their ends, side by side."""
    ends: dict[int, Row] = {}
    asks: dict[int, Row] = {}

    def go_on(index: int, answer: float | None) -> None:
        try:
            asks[index] = next(tracks[index]) if answer is None else tracks[index].send(answer)
        except StopIteration as end:
            asks.pop(index, None)
            ends[index] = end.value

    for index in range(len(tracks)):
        go_on(index, None)
    while asks:
        similarity.measure(list(asks.values()))
        for index, row in list(asks.items()):
            go_on(index, similarity.known[row])
    return [ends[index] for index in range(len(tracks))]


def highest(ends_of: Callable[[Sequence[float]], Sequence[Row]], n: int) -> tuple[Row, float]:
    """The row of the highest threshold at which ``n`` layers go, and that threshold.

    Raises:
        ValueError: not so many can go at any threshold.
    """
    low, high = -1.0 - 1e-9, 1.0
    (best,) = ends_of([low])
    if n_gone(best) < n:
        raise ValueError(
            f"at most {n_gone(best)} layers can be merged away like this, {n} are asked for; give a larger merge.group or a "
            "smaller merge.interval, protect fewer layers, or remove fewer"
        )
    for _ in range(ROUNDS):
        tried = [low + (high - low) * (i + 1) / (THRESHOLDS + 1) for i in range(THRESHOLDS)]
        for threshold, row in zip(tried, ends_of(tried), strict=True):
            if n_gone(row) < n:
                high = min(high, threshold)
            elif threshold < high and not math.isnan(threshold):
                low, best = threshold, row
    return best, max(low, -1.0)


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
    rules, similarity = (
        MergeRules(RULES.named(config.rule), frozenset(range(n_layers)), trial.are_alike, n),
        Similarities(trial),
    )

    def ends_of(thresholds: Sequence[float]) -> list[Row]:
        return in_step([merging(whole_row(n_layers), config, rules, one) for one in thresholds], similarity)

    try:
        highest(ends_of, n)
    except ValueError:
        pass  # So many cannot go, which the run says when it has tried as much.
    return len(similarity.known)
