"""How a search went, as a file: ``search.json`` of a run folder."""

from shoal.words.records import Record
from shoal.words.types import UnitChoice


class SearchRecord(Record):
    """How a search went.

    Attributes:
        selector, metric: what searched, and by which metric.
        data, data_hash, n_tokens: the text that every set was run on, or the items of tasks, which count no tokens.
        units: what might go: layers, sublayers, attention or mlp.
        n_units, n: how many of them might go, and how many went.
        n_evaluations: different sets that were asked for; those of an earlier, killed run are counted like others.
        curve: (evaluations, lowest loss of a set of n layers until then), a point for each improvement.
    """

    selector: str
    metric: str
    data: str
    data_hash: str
    n_tokens: int
    units: UnitChoice = "layers"
    n_units: int
    n: int
    n_evaluations: int
    curve: tuple[tuple[int, float], ...]
