"""How a search runs the model: by which metric, on how much text, and how often at most. Plain data, free of torch."""

from pydantic import Field, field_validator

from shoal.measure.metrics import metric_named
from shoal.words.counts import MOST_TOKENS, StepCount
from shoal.words.records import Record


class SearchConfig(Record):
    """For selectors that choose by running; the others do not look at it.

    Attributes:
        metric: what a student loses, a name of :data:`shoal.measure.metrics.METRICS`.
        tokens: of the ``calibration`` slice; every set that is asked for is run on them.
        evaluations: most sets that may be run; None: as many as the search asks for.
    """

    metric: str = "kl"
    tokens: int = Field(default=16_384, ge=2, le=MOST_TOKENS)
    evaluations: StepCount | None = None

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return metric_named(value).name
