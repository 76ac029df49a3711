"""The stages of a run: scan, plan, save, evaluate; between plan and save come those of fit.py and train.py.

Each reads its inputs, writes its files, and can be read back.

A stage is keyed by a hash of everything it depends on; see :mod:`shoal.run.keys` and :mod:`shoal.run.folder`.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.run.candidate_repair import linear_errors_of, repairs_candidates, rungs
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.keys import choice_key, evaluation_key, save_key, scan_key, unopened_choice_key
from shoal.run.measuring import against_teacher
from shoal.run.searching import runs_the_model, set_function_of, write_search
from shoal.words.progress import Progress, silent
from shoal.words.records import write_atomically
from shoal.words.structure import Structure, stored
from shoal.words.types import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from shoal.edits.plan import Plan
    from shoal.engine.student import Student
    from shoal.engine.view import DecoderView
    from shoal.evaluate.evaluation import Evaluation
    from shoal.measure.oracle import Oracle
    from shoal.measure.scan import Scan
    from shoal.recipes.recipe import Recipe
    from shoal.run.heal import HealedInRun
    from shoal.select.budget import Budget
    from shoal.select.request import Request
    from shoal.text import Samples
    from shoal.train.train_result import TrainResult

VALUES = "fit.safetensors"


def needs_scan(recipe: Recipe) -> bool:
    """False where nothing reads the scores: a selector without tables, and no other candidates to propose."""
    from shoal.select.table import selector_named

    return "tables" in selector_named(recipe.select).reads or recipe.guard > 1


def needs_model(recipe: Recipe) -> bool:
    """False where the choice follows from config and names alone: a rule without measurements, with nothing put back."""
    return needs_scan(recipe) or runs_the_model(recipe) or recipe.replace != "none"


def scan_stage(inputs: Inputs, folder: RunFolder, *, progress: Progress = silent) -> Scan:
    """``scan.json``, ``scan.safetensors`` and the heat map."""
    from shoal.checkpoint.blueprint import check_can_be_cut
    from shoal.measure.observers import ScanFacts, observer_named
    from shoal.measure.scan import Asked, Scan, scan

    check_can_be_cut(inputs.opened.model.config, model_class=type(inputs.opened.model))
    key = scan_key(inputs)
    if folder.is_done("scan", key):
        return Scan.load(folder.path)
    started = time.monotonic()
    batches = inputs.batches(inputs.calibration)
    facts = ScanFacts(inputs.view.n_layers, inputs.view.hidden_size, inputs.length, inputs.recipe.seed)
    found = scan(
        inputs.view,
        batches,
        provenance=inputs.provenance(inputs.calibration),
        observers=[observer_named(name).build(facts) for name in inputs.recipe.observers],
        after_batch=lambda batch: progress("scan", batch.index + 1, len(batches)),
        workers=inputs.workers,
    )
    recipe = inputs.recipe
    asked = Asked(text=recipe.text.model_dump(mode="json"), seed=recipe.seed, observers=recipe.observers)
    found = replace(found, asked=asked)
    inputs.workers.on_first(lambda: found.save(folder.path))
    pictures = inputs.workers.from_first(lambda: draw(found, folder.path, by=inputs.recipe.by))
    folder.finish("scan", key, seconds=time.monotonic() - started, files=["scan.json", "scan.safetensors", *pictures])
    return found


def draw(found: Scan, folder: Path, *, by: str) -> list[str]:
    """The heat map of UIDL's figure for the table in use (angular distance of the last token where it has none)."""
    from shoal.show.chart_files import save_figures
    from shoal.show.heat import Heat

    table = found.tables.get(by) or found["angular/last"]
    return [path.name for path in save_figures([Heat((table,))], folder)]  # none without matplotlib: the command says so


def plan_stage(
    inputs: Inputs,
    folder: RunFolder,
    found: Scan | None,
    *,
    budget: Budget | None = None,
    judge: Oracle | None = None,
    progress: Progress = silent,
) -> Plan:
    """``plan.json``: budget, selector and guard.

    Args:
        budget: the recipe's unless given.
        judge: the guard's oracle on ``selection``, shared by the plans of a sweep; a new one unless given.
    """
    from shoal.edits.plan import Plan
    from shoal.run.race import Standings
    from shoal.run.tournament import choose
    from shoal.select.model_size import model_size
    from shoal.select.plan_of import plan_of
    from shoal.select.request import Evidence
    from shoal.select.rounds import rescanner
    from shoal.select.shortlist import shortlist

    recipe, view = inputs.recipe, inputs.view
    budget, request = budget or budget_of(recipe), request_of(recipe, view)
    key = choice_key(inputs, budget, request, scan=scan_key(inputs) if found else None)
    if folder.is_done("plan", key):
        return Plan.load(folder / "plan.json")
    started = time.monotonic()
    size = model_size(view)
    value = set_function_of(inputs, request, folder=folder, progress=progress) if runs_the_model(recipe) else None
    evidence = Evidence(
        found.tables if found else {},
        lambda structure: why_not(inputs, structure),
        value,
        recipe.seed,
        late=linear_errors_of(inputs, progress=progress),
    )
    short = shortlist(
        budget,
        size,
        request,
        evidence,
        rescan=rescanner(view, inputs.batches(inputs.calibration), workers=inputs.workers) if recipe.rounds > 1 else None,
    )
    if recipe.guard > 1 and judge is None:
        judge = oracle(inputs, inputs.selection, what="tournament", progress=progress)
    standings = Standings(folder / "tournament", key, workers=inputs.workers)
    choice = choose(
        short,
        size,
        judge=judge if recipe.guard > 1 else None,
        rungs=rungs(inputs, size, progress=progress),
        standings=standings,
    )
    plan = plan_of(
        choice.best.edits,
        size,
        own_parameters=request.put_back.own_parameters,
        source=inputs.opened.name,
        source_hash=inputs.opened.fingerprint,
        method=choice.method,
        candidates=choice.candidates,
        spread=choice.spread,
    )
    plan = inputs.workers.from_first(lambda: _written(plan, folder))
    searched = [] if value is None else write_search(inputs, value, short.request.n, folder=folder)
    folder.finish("plan", key, seconds=time.monotonic() - started, files=["plan.json", *searched])
    standings.clear()
    return plan


def plan_unopened(recipe: Recipe, folder: RunFolder, *, trust_remote_code: bool = False) -> Plan:
    """``plan.json`` by a rule that measures nothing: from config and names alone, so quantised checkpoints of any size will do.

    Raises:
        ValueError: the recipe needs scores or puts something back; and as for :func:`plan_stage`.
    """
    from shoal.checkpoint.blueprint import check_can_be_cut, check_layers
    from shoal.edits.plan import Plan
    from shoal.engine.config import describe
    from shoal.engine.families import find_layers
    from shoal.engine.source import fingerprint, resolve_source
    from shoal.run.tournament import choose
    from shoal.select.model_size import size_of
    from shoal.select.plan_of import plan_of
    from shoal.select.request import Evidence
    from shoal.select.shortlist import shortlist

    if recipe.model is None or needs_model(recipe):
        raise ValueError("a plan without opening the model needs a model, --select deepest, --guard 1 and --replace none")
    path = resolve_source(recipe.model, trust_remote_code=trust_remote_code)
    described = describe(path, trust_remote_code=trust_remote_code)
    config, skeleton = described.config, described.model
    check_can_be_cut(config, model_class=type(skeleton))
    size = size_of(skeleton, find_layers(skeleton)[0])
    request = plain_request_of(recipe, size.n_layers)
    budget = budget_of(recipe)
    key = unopened_choice_key(fingerprint(path), budget, request)
    if folder.is_done("plan", key):
        return Plan.load(folder / "plan.json")

    def refuse(structure: Structure) -> str | None:
        order = [slot.like for slot in stored(structure)]
        return reason_of(lambda: check_layers(config, order, model_class=type(skeleton)))

    choice = choose(shortlist(budget, size, request, Evidence(refuse=refuse)), size)
    plan = plan_of(
        choice.best.edits,
        size,
        source=recipe.model,
        source_hash=fingerprint(path),
        method=choice.method,
        candidates=choice.candidates,
    )
    plan = folder.workers.from_first(lambda: _written(plan, folder))
    folder.finish("plan", key, seconds=0.0, files=["plan.json"])
    return plan


def _written(plan: Plan, folder: RunFolder) -> Plan:
    plan.save(folder / "plan.json")
    return plan


def budget_of(recipe: Recipe) -> Budget:
    from shoal.select.budget import parse_budget, parse_parameters

    return parse_parameters(recipe.parameters) if recipe.parameters else parse_budget(recipe.drop)


def request_of(recipe: Recipe, view: DecoderView) -> Request:
    """What the recipe says of selection, for a model: the options of a replacement are those its family has."""
    from shoal.edits.replace.table import parse_replacement
    from shoal.select.model_size import put_back_of

    found = parse_replacement(recipe.replace)
    put_back = put_back_of(None if found is None else found.resolved(view), view.hidden_size)
    put_back = replace(put_back, scores_inherited=not repairs_candidates(recipe))
    return replace(plain_request_of(recipe, view.n_layers), put_back=put_back)


def plain_request_of(recipe: Recipe, n_layers: int) -> Request:
    """As :func:`request_of` for plain removal."""
    from shoal.select.request import Request

    return Request(
        n_layers=n_layers,
        selector=recipe.select,
        by=recipe.by,
        max_spans=recipe.max_spans,
        protected=recipe.protected(n_layers),
        n_rounds=recipe.rounds,
        n_candidates=recipe.guard,
    )


def why_not(inputs: Inputs, structure: Structure) -> str | None:
    """Why this family cannot be that structure, or None. Asked once per order of layers: the answer builds two models."""
    from shoal.checkpoint.blueprint import check_layers

    model, order = inputs.opened.model, tuple(slot.like for slot in stored(structure))
    if order not in inputs.refusals:
        inputs.refusals[order] = reason_of(lambda: check_layers(model.config, order, model_class=type(model)))
    return inputs.refusals[order]


def reason_of(check: Callable[[], object]) -> str | None:
    """The message of a refusal, or None where there is none."""
    try:
        check()
    except ValueError as refusal:
        return str(refusal)
    return None


def oracle(inputs: Inputs, samples: Samples, *, what: str, progress: Progress) -> Oracle:
    from shoal.measure.oracle import Oracle

    batches = inputs.batches(samples)
    return Oracle(
        inputs.view,
        batches,
        after_batch=lambda batch: progress(what, batch.index + 1, len(batches)),
        workers=inputs.workers,
    )


@dataclass(frozen=True, eq=False)
class Fitted:
    """A student with its values, and how they were trained (empty: nothing was)."""

    student: Student
    values: dict[str, Tensor]
    results: tuple[TrainResult, ...]


def claim(folder: RunFolder, name: str, key: str) -> None:
    """Make ``name/`` the work folder of a stage with these inputs: an unfinished one of the same inputs is continued.

    Raises:
        ValueError: it holds unfinished work of other inputs, and ``overwrite`` was not given.
    """
    mark = folder / name / "key"
    if mark.exists() and mark.read_text() != key:
        if not folder.overwrite:
            raise ValueError(
                f"{folder / name} holds an unfinished run with other options, model or text; add --overwrite to drop it, "
                "or give another --out"
            )
        shutil.rmtree(folder / name)
    write_atomically(mark, key.encode())


def save_stage(inputs: Inputs, folder: RunFolder, plan: Plan, fitted: Fitted) -> Path:
    """``model/``, or ``cut/`` where it is to be healed: the student, whole and verified by reloading it."""
    key = save_key(inputs, plan, fitted.values)
    name = "model" if inputs.recipe.heal is None else "cut"
    target, proof = folder / name, "verification.json" if name == "model" else "cut.verification.json"
    if folder.is_done(name, key):
        return target
    started = time.monotonic()
    ids_BT = inputs.evaluation.ids_NT[:2]
    inputs.workers.on_first(lambda: _save_and_verify(inputs, target, folder / proof, plan, fitted, ids_BT=ids_BT))
    folder.finish(name, key, seconds=time.monotonic() - started, files=[name, proof])
    return target


def _save_and_verify(inputs: Inputs, target: Path, proof: Path, plan: Plan, fitted: Fitted, *, ids_BT: Tensor) -> None:
    """The checkpoint takes its name when it has been proved to be the student, and not before."""
    from shoal.checkpoint.new_folder import new_folder
    from shoal.checkpoint.verify import verify, verify_streamed
    from shoal.checkpoint.write import is_bundled, write
    from shoal.engine.streamed import Streamed

    view, trusted = inputs.view, inputs.opened.trusted or is_bundled(inputs.view, plan)
    shutil.rmtree(target, ignore_errors=True)  # left by a run that died before it recorded the stage
    with new_folder(target) as made:
        write(view, inputs.opened.path, plan, made, values=fitted.values)
        reference = view.logits(Batch(ids_BT), student=fitted.student)
        if isinstance(view.residency, Streamed):
            view.residency.settle(())  # the checkpoint's own layers are read next
            checked = verify_streamed(made, ids_BT=ids_BT, reference_BTV=reference, trust_remote_code=trusted)
        else:
            device = str(view.device)
            checked = verify(made, ids_BT=ids_BT, reference=lambda ids: reference, device=device, trust_remote_code=trusted)
    checked.model_copy(update={"path": target.name}).save(proof)


def evaluate_stage(
    inputs: Inputs,
    folder: RunFolder,
    plan: Plan,
    fitted: Fitted,
    *,
    healed: HealedInRun | None = None,
    command: str,
    progress: Progress = silent,
) -> Evaluation:
    """``evaluation.json`` and the card: the checkpoint in ``model/`` against the teacher, on text nothing was chosen on."""
    from shoal.checkpoint.write import is_bundled
    from shoal.engine.open import load_strictly
    from shoal.engine.student import student_without
    from shoal.engine.view import DecoderView
    from shoal.evaluate.evaluation import Evaluation
    from shoal.show.card import card, inherited_metadata

    key = evaluation_key(inputs, plan, fitted.values, healed=None if healed is None else healed.key)
    if folder.is_done("evaluation", key):
        return Evaluation.load(folder / "evaluation.json")
    started = time.monotonic()
    # of a streamed model: equal to the checkpoint, as was verified
    student: DecoderView | Student = replace(fitted.student, name="student")
    if not inputs.is_streamed:
        saved = load_strictly(folder / "model", trust_remote_code=inputs.opened.trusted or is_bundled(inputs.view, plan))
        student = DecoderView(saved.to(inputs.view.device))
    plain = None
    if fitted.values or healed is not None:  # the same number of layers without repair, on the same text
        judge = oracle(inputs, inputs.evaluation, what="evaluate the plain cut", progress=progress)
        plain = judge.measure([student_without(plan.absent_layers)])[0]
    evaluation = against_teacher(inputs, student, plain=plain, progress=progress)

    def write() -> None:
        evaluation.save(folder / "evaluation.json")
        text = card(
            plan,
            evaluation,
            recipe_name=inputs.recipe.name,
            command=command,
            papers=inputs.recipe.papers,
            trained=fitted.results,
            healed="" if healed is None else f"{healed.training}; merged: {healed.merging.way}",
            inherited=inherited_metadata(inputs.opened.path),
        )
        write_atomically(folder / "model" / "README.md", text.encode())

    inputs.workers.on_first(write)
    folder.finish("evaluation", key, seconds=time.monotonic() - started, files=["evaluation.json", "model/README.md"])
    return evaluation
