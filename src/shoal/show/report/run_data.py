"""What a report is made of: the values of a run folder, read by ``shoal.run.stages.report``, and the sections they become."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.checkpoint.verify import Verification
from shoal.edits.plan import Plan
from shoal.evaluate.curve.ratio_curve import RatioCurves
from shoal.evaluate.evaluation import Evaluation
from shoal.evaluate.tasks.benchmark import Benchmark
from shoal.export.proof_record import ProofRecord
from shoal.fit.fit_result import FitResult
from shoal.measure.oracle import Quality
from shoal.measure.scan import Scan
from shoal.measure.unit_score_record import UnitScores
from shoal.prune.thin_result import ThinResult
from shoal.select.search.search_record import SearchRecord
from shoal.show.chart import Chart
from shoal.show.heat import Heat
from shoal.show.html import Html
from shoal.show.table import Table
from shoal.train.heal.result import Drift, HealTraining, Merging
from shoal.train.train_result import CurvePoint, TrainResult
from shoal.words.records import Provenance

Drawing = Chart | Heat
Part = Html | Drawing | Table
"""What a section is made of; the page renders drawings and tables."""


@dataclass(frozen=True)
class Facts:
    """What ``run.json`` and ``recipe.yaml`` say of a run.

    Attributes:
        command: as it was typed; empty for a run from Python.
        again: the command that makes the run again, also where none was typed.
        seconds: of every finished stage, in order.
        by: the table that layers were chosen by, ``criterion/tokens``.
        recipe: the text of ``recipe.yaml``; empty where there is none.
    """

    command: str = ""
    again: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    by: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class LearningCurve:
    """The learning curve of what was trained together; ``stem`` is for file names, ``result`` is None while it trains."""

    name: str
    stem: str
    points: tuple[CurvePoint, ...]
    result: TrainResult | None = None


@dataclass(frozen=True, eq=False)
class RunData:
    """A run folder as values. What is None or empty is not in the folder.

    Attributes:
        name: the model that was cut, for others to read.
        before: the student as it came to a healing of its own, on the text of ``evaluation``; ``drift``: what such a healing
            changed where text alone trained.
        not_healed: why the student was not healed, where it might have been.
        proved: files of this student in engines.
        answers: what ``shoal eval --task … --json`` printed, kept in the folder as ``tasks.json``.
        missing: files that a finished run of this kind would have, each with the step that writes it.
    """

    name: str
    facts: Facts
    scan: Scan | None = None
    plan: Plan | None = None
    repair: FitResult | None = None
    curves: tuple[LearningCurve, ...] = ()
    evaluation: Evaluation | None = None
    answers: Evaluation | None = None
    thinned: ThinResult | None = None
    verification: Verification | None = None
    healing: HealTraining | None = None
    not_healed: str = ""
    before: Quality | None = None
    drift: Drift | None = None
    merging: Merging | None = None
    ratios: RatioCurves | None = None
    search: SearchRecord | None = None
    scores: UnitScores | None = None
    proved: tuple[ProofRecord, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[Benchmark | None, str]:
        """Results on tasks, and the file they are from."""
        if self.evaluation is not None and self.evaluation.tasks is not None:
            return self.evaluation.tasks, "evaluation.json"
        return (self.answers.tasks if self.answers else None), "tasks.json"

    @property
    def provenances(self) -> dict[str, Provenance]:
        """By file, in the order of the stages."""
        files = {
            "scan.json": self.scan,
            "evaluation.json": self.evaluation,
            "drift.json": self.drift,
            "tasks.json": self.answers,
            "curve.json": self.ratios,
        }
        return {file: one.provenance for file, one in files.items() if one is not None}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: its anchor, and with a capital its name in the list of sections.
        source: the files its figures come from.
        parts: markup, tables and drawings, in order; drawings also become files for papers.
    """

    id: str
    title: str
    source: str
    parts: tuple[Part, ...]

    @property
    def charts(self) -> tuple[Drawing, ...]:
        return tuple(part for part in self.parts if isinstance(part, Chart | Heat))
