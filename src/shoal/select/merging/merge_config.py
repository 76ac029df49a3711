"""How layers are merged. Plain data for recipes."""

from pydantic import Field, field_validator

from shoal.edits.base import MOST_LAYERS
from shoal.edits.merge_rules import RULES
from shoal.words.records import Record


class MergeConfig(Record):
    """For selectors that merge; the others do not look at it.

    Attributes:
        rule: how several layers become one, an entry of :data:`shoal.edits.merge_rules.RULES`.
        group: layers that become one at a time (LaCo's C); the sliding window has no such size.
        interval: layers to go down after a merge (LaCo's I).
        threshold: similarity to the source, 1 minus the loss of the search's metric, above which a merge is kept, as in the
            papers; the budget is then the most that goes. None: the highest threshold at which the budget is met.
    """

    rule: str = "sum_diff"
    group: int = Field(default=4, ge=2, le=MOST_LAYERS)
    interval: int = Field(default=2, ge=1, le=MOST_LAYERS)
    threshold: float | None = Field(default=None, ge=-1, le=1)

    @field_validator("rule")
    @classmethod
    def _known(cls, value: str) -> str:
        if RULES.named(value).weights is None:
            raise ValueError(
                f"merge.rule {value!r} takes weights by hand; use {', '.join(one for one in RULES if one != value)}"
            )
        return value
