"""How a search runs the model: by which metric, on how much text or which tasks, how often. Plain data, free of torch."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from shoal.measure.metrics import METRICS
from shoal.measure.task_metric import TASK
from shoal.words.counts import MOST_TOKENS, SampleCount, StepCount
from shoal.words.records import Record


class SearchConfig(Record):
    """For selectors that choose by running; the others do not look at it.

    Attributes:
        metric: what a student loses, a name of :data:`shoal.measure.metrics.METRICS`, or ``task``: 1 - accuracy on ``tasks``.
        tokens: of the ``calibration`` slice; every set that is asked for is run on them.
        tasks: files of choices or last words, each of which counts alike; for the metric ``task`` and scores such as
            ``windowed_task``, which read no text.
        items: the first ones of each task; None: all of them.
        evaluations: most sets that may be run; None: as many as the search asks for.
    """

    metric: str = "kl"
    tokens: int = Field(default=16_384, ge=2, le=MOST_TOKENS)
    tasks: tuple[str, ...] = ()
    items: SampleCount | None = None
    evaluations: StepCount | None = None

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return value if value == TASK else METRICS.named(value).name

    @model_validator(mode="after")
    def _items_of_tasks(self) -> SearchConfig:
        if self.items is not None and not self.tasks:
            raise ValueError(f"items={self.items} is about tasks to choose by; name their files (--task)")
        return self
