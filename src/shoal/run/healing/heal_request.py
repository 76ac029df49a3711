"""What ``shoal heal`` is asked for, besides the machine."""

from shoal.recipes.recipe import TextChoice
from shoal.train.heal.config import HealConfig
from shoal.words.counts import SeedNumber
from shoal.words.records import Record


class HealRequest(Record):
    """What ``shoal heal`` does, besides the machine; ``heal.request.json`` of its run folder.

    Attributes:
        student: hub id, checkpoint folder or run folder (its ``model/``).
        teacher: the reference; None: train on text alone.
        plan: file with the plan that made the student; None where nothing reads it.
        speed: whether the evaluation measures how fast teacher and student run; without a teacher nothing is timed.
    """

    student: str
    teacher: str | None = None
    plan: str | None = None
    text: TextChoice = TextChoice()
    heal: HealConfig = HealConfig()
    speed: bool = True
    seed: SeedNumber = 0
