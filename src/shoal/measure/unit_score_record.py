"""A table of units as a file: ``scores.json`` of a run folder."""

from shoal.words.records import Record


class UnitScores(Record):
    """The score that units were chosen by.

    Attributes:
        by: its name. ``values``, ``stderr``: by unit, such as ``attn.3``; errors that are not known are left out.
        data, data_hash, n_tokens: the text, or the items of tasks; no tokens where no text is read.
        n_evaluations: sets that were run for it.
    """

    by: str
    about: str
    unit: str
    higher_is_more_redundant: bool
    data: str
    data_hash: str
    n_tokens: int
    n_evaluations: int
    values: dict[str, float]
    stderr: dict[str, float]
