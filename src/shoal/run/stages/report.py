"""``report.html`` and ``figures/``: a run folder read back and made into a page. Derived from the other files, so written anew
whenever it is asked for.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from shoal.checkpoint.verify import Verification
from shoal.edits.plan import Plan
from shoal.engine.source import fingerprint
from shoal.evaluate.curve.ratio_curve import RatioCurves
from shoal.evaluate.evaluation import Evaluation
from shoal.export.proof_record import RECORD as PROVED
from shoal.export.proof_record import ProofRecord, is_record, records_in
from shoal.fit.fit_result import FitResult
from shoal.measure.oracle import Quality
from shoal.measure.scan import Scan
from shoal.measure.unit_score_record import UnitScores
from shoal.prune.thin_result import ThinResult
from shoal.recipes.reads import needs_scan
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe
from shoal.run.folder import NOT_HEALED, RECORD, RunRecord
from shoal.run.healing.heal_request import HealRequest
from shoal.run.run_files import CURVES, plan_file
from shoal.select.search.search_record import SearchRecord
from shoal.show.chart_files import save_figures
from shoal.show.headline import source_name
from shoal.show.report.page import GENERATOR, page, sections
from shoal.show.report.run_data import Facts, LearningCurve, RunData
from shoal.train.heal.result import Drift, HealTraining, Merging
from shoal.train.train_result import CurvePoint, TrainResult, TrainResults
from shoal.words.reading import read_json, refuse_other_than_run
from shoal.words.records import write_atomically
from shoal.words.structure import Size

PAGE, FIGURES, TASKS = "report.html", "figures", "tasks.json"
STEPS = {"scan.json": "scan", "plan.json": "plan", "evaluation.json": "evaluation"}
"""Files of a whole run, each with the step that writes it."""


def report_stage(folder: Path) -> Path:
    """The page at the end of a run."""
    return _write_page(read_run(folder), Path(folder) / PAGE, overwrite=False)


def write_report(folder: Path, out: Path | None = None, *, overwrite: bool = False) -> tuple[Path, list[Path]]:
    """Write the page of a run folder, and its charts as files for papers where matplotlib is installed.

    Args:
        out: the page; ``report.html`` of the folder unless given. Charts go to ``figures/`` beside it.
        overwrite: a file that is no report of ours may be replaced; an earlier report always is.
    Returns:
        The page, and the files of the charts.
    Raises:
        ValueError: the folder holds nothing of a run, a file of it is damaged, or ``out`` is somebody else's file.
    """
    data = read_run(folder)
    place = Path(folder) / PAGE if out is None else Path(out)
    if (place.parent / FIGURES).is_symlink():
        raise ValueError(f"{place.parent / FIGURES} is a link, and charts would be written where it leads; take the link away")
    page = _write_page(data, place, overwrite=overwrite)
    return page, save_figures([chart for one in sections(data) for chart in one.charts], page.parent / FIGURES)


def _write_page(data: RunData, out: Path, *, overwrite: bool) -> Path:
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give a file name such as {out / PAGE}")
    if out.exists() and not overwrite:
        with out.open("rb") as file:
            if f'content="{GENERATOR}'.encode() not in file.read(4096):
                raise ValueError(f"{out} exists and is no report of ours; add --overwrite to replace it, or give another --out")
    write_atomically(out, page(data).encode())
    return out


def read_run(folder: Path) -> RunData:
    """A run folder as values; what is not there yet is None and listed as missing.

    Raises:
        ValueError: not a folder, nothing of a run in it, or a damaged file (says which, in one line).
    """
    folder = Path(folder)
    refuse_other_than_run(folder)
    has = {name: (folder / name).is_file() for name in (*STEPS, RECORD, "verification.json")}
    if (folder / CURVES).is_file():
        return _read_curves(folder)
    request = _healing(folder)
    if request is None and not any(has[name] for name in STEPS):
        started = f"; {RECORD} says that a run was started, its first step has not finished" if has[RECORD] else ""
        raise ValueError(
            f"{folder} holds none of {', '.join([*STEPS, CURVES])}{started}; give the run folder of a shoal command (its --out)"
        )
    scan = Scan.load(folder) if has["scan.json"] else None
    plan = Plan.load(plan_file(folder)) if has["plan.json"] else None
    evaluation = Evaluation.load(folder / "evaluation.json") if has["evaluation.json"] else None
    plan = plan and _of_its_edits(plan, evaluation)
    facts, reads_scan = _facts(folder)
    needed = [name for name in STEPS if name != "scan.json" or reads_scan]
    merging = Merging.load(folder / "merge.json") if (folder / "merge.json").is_file() else None
    if request is not None:  # The student was cut elsewhere.
        # Without a teacher, or without a checkpoint, nothing is compared.
        needed = ["evaluation.json"] if request.teacher and (merging is None or merging.way != "apart") else []
    answers = _answers(folder)
    missing = [f"{name} (step {STEPS[name]})" for name in needed if not has[name]]
    if answers and evaluation and not _are_of_one_run(answers, evaluation):  # A run before this one left the answers.
        answers = None
        missing.append(f"tasks of this student ({TASKS} is of another one; score them again)")
    known = (plan and plan.source, request and request.student, scan and scan.provenance.model)
    source = next((one for one in (*known, evaluation and evaluation.provenance.model) if one), "")
    return RunData(
        name=source_name(source),
        facts=facts,
        scan=scan,
        plan=plan,
        repair=_repair(folder),
        curves=_curves(folder),
        evaluation=evaluation,
        answers=answers,
        thinned=ThinResult.load(folder / "prune.json") if (folder / "prune.json").is_file() else None,
        verification=Verification.load(folder / "verification.json") if has["verification.json"] else None,
        healing=HealTraining.load(folder / "heal.json") if (folder / "heal.json").is_file() else None,
        not_healed=(folder / NOT_HEALED).read_text(encoding="utf-8") if (folder / NOT_HEALED).is_file() else "",
        drift=Drift.load(folder / "drift.json") if (folder / "drift.json").is_file() else None,
        before=Quality.load(folder / "before.json") if (folder / "before.json").is_file() else None,
        search=SearchRecord.load(folder / "search.json") if (folder / "search.json").is_file() else None,
        scores=UnitScores.load(folder / "scores.json") if (folder / "scores.json").is_file() else None,
        proved=_proved(folder),
        merging=merging,
        missing=tuple(missing),
    )


def _healing(folder: Path) -> HealRequest | None:
    """What a healing of its own was asked for, once its training has ended."""
    request = folder / "heal.request.json"
    return HealRequest.load(request) if request.is_file() and (folder / "heal.json").is_file() else None


def _read_curves(folder: Path) -> RunData:
    """The folder of `shoal curve`: its curves and the scan that its cuts share."""
    curves = RatioCurves.load(folder / CURVES)
    n_wanted = len(curves.recipes) * len(curves.counts)
    missing = () if curves.is_complete else (f"{n_wanted - len(curves.points)} of {n_wanted} cuts (step curve)",)
    return RunData(
        name=source_name(curves.provenance.model),
        facts=_facts(folder)[0],
        scan=Scan.load(folder) if (folder / "scan.json").is_file() else None,
        ratios=curves,
        missing=missing,
    )


def _proved(folder: Path) -> tuple[ProofRecord, ...]:
    """What engines made of files of the student that the folder holds now."""
    is_there = any(is_record(path) for path in folder.glob(f"*{PROVED}")) and (folder / "model" / "config.json").is_file()
    return tuple(records_in(folder, fingerprint(folder / "model"))) if is_there else ()


def _answers(folder: Path) -> Evaluation | None:
    """What `shoal eval` printed into the folder.

    Raises:
        ValueError: something else, or nothing, as an evaluation that failed leaves it.
    """
    file = folder / TASKS
    try:
        return Evaluation.load(file) if file.is_file() else None
    except ValueError as error:
        raise ValueError(
            f"{error}; make {TASKS} with `shoal eval {folder}/model --teacher TEACHER --task FILE --json`, or remove it"
        ) from None


def _are_of_one_run(answers: Evaluation, evaluation: Evaluation) -> bool:
    """False when tasks were scored on another teacher or student than the run has, as far as can be told."""
    teachers = {one.provenance.model_hash for one in (answers, evaluation)}
    return len(teachers) == 1 and answers.student.cost.parameters == evaluation.student.cost.parameters


def _repair(folder: Path) -> FitResult | None:
    """The closed-form repair, if there is one."""
    file = folder / "fit.json"
    return FitResult.load(file) if file.is_file() and "results" not in read_json(file) else None


def _curves(folder: Path) -> tuple[LearningCurve, ...]:
    """Learning curves: of what was trained, or of a training that has not finished."""
    # The second file is read where nothing but a replacement has values.
    for file in (folder / "train.json", folder / "fit.json"):
        if file.is_file() and "results" in read_json(file):
            results = TrainResults.load(file).results
            return tuple(
                LearningCurve(_trained(one), f"{i}-{one.start}-{one.stop}", one.curve, one) for i, one in enumerate(results)
            )
    curves = []
    for path in sorted(folder.glob("train/*/curve.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        points = tuple(CurvePoint.from_json(line, where=f"{path}, line {i}") for i, line in enumerate(lines, start=1))
        curves.append(LearningCurve(f"training {path.parent.name}", path.parent.name, points))
    return tuple(curves)


def _trained(one: TrainResult) -> str:
    more = f" and {len(one.trained) - 2} more" if len(one.trained) > 2 else ""
    return ", ".join(one.trained[:2]) + more


EDITED = "edited by hand"


def _of_its_edits(plan: Plan, evaluation: Evaluation | None) -> Plan:
    """A plan that somebody edited, with the sizes that were measured of its student in place of those of the choice."""
    if not plan.is_edited_by_hand or plan.method == EDITED:
        return plan
    update: dict[str, object] = {"method": f"{EDITED}; sizes are those of the choice", "candidates": (), "spread": ()}
    if evaluation is not None:
        before, cost = plan.before, evaluation.student.cost
        after = Size(layers=cost.layers, parameters=cost.parameters)
        removed = {"layers": 1 - after.layers / before.layers, "parameters": 1 - after.parameters / before.parameters}
        update |= {"method": EDITED, "after": after, "removed": removed}
    return plan.model_copy(update=update)


def _facts(folder: Path) -> tuple[Facts, bool]:
    """What run.json and recipe.yaml say, and whether the recipe reads a scan."""
    record = RunRecord.load(folder / RECORD) if (folder / RECORD).is_file() else RunRecord(version="")
    file, recipe = folder / "recipe.yaml", Recipe()
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if text:
        recipe = load_recipe(str(file))
    again = record.command
    if not again and text:
        again = shlex.join(["shoal", "run", "recipe.yaml", "--out", "NEW-FOLDER"])
    seconds = {name: stage.seconds for name, stage in record.stages.items()}
    if "heal" in seconds:  # In a run the stage "healed" holds the seconds of its steps, which stand beside it.
        seconds.pop("healed", None)
    facts = Facts(
        command=record.command,
        again=again,
        versions=record.versions,
        seconds=seconds,
        by=recipe.by,
        recipe=text,
    )
    return facts, needs_scan(recipe)
