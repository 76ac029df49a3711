"""What a verb prints when it is done: tables, the plan, and where the files are."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from shoal.cli.console import Screen, steps_said
from shoal.edits.plan import Plan
from shoal.edits.prune import Prune
from shoal.engine.beside import Beside
from shoal.evaluate.evaluation import Evaluation
from shoal.evaluate.stability import Stability
from shoal.evaluate.tasks.disagreement import disagreement, kept_shares
from shoal.export.found_plan import CUT
from shoal.prune.thin_result import speed_said
from shoal.recipes.recipe import Recipe
from shoal.run.candidate_repair import repairs_candidates
from shoal.run.compress import Outcome
from shoal.run.estimate import estimate
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.optional_healing import no_room_to_heal
from shoal.run.pace import Pace, measure_rates
from shoal.run.stage import Stage
from shoal.run.stages.table import STAGES
from shoal.run.time_budget import in_time
from shoal.select.verdict import spread_said
from shoal.show.figure_tables import figures, generations
from shoal.show.plan_tables import best_spans, candidates, removed_said, repair, sizes_said, telling_lengths, zeroed_said
from shoal.show.task_tables import accuracy, agreement, flips, task_notes
from shoal.show.zero_tables import by_role
from shoal.train.heal.config import HealConfig
from shoal.words.numbers import in_bytes
from shoal.words.reading import read_json
from shoal.words.structure import units_off

HEAT_MAP = ("heat map", "heatmap.png")


def show_outcome(screen: Screen, outcome: Outcome) -> None:
    """A whole run: scores, tournament, training, figures, texts, plan, files; as JSON when asked for."""
    plan, evaluation = outcome.plan, outcome.evaluation
    if outcome.scan is not None:
        screen.show(best_spans(outcome.scan, lengths=telling_lengths(max(1, len(plan.removed_layers)))))
    if len(plan.candidates) > 1:
        screen.show(candidates(plan.candidates, n_layers=plan.n_layers))
    say_spread(screen, plan)
    say_beside(screen, outcome.beside)
    if outcome.repaired is not None:
        screen.say(f"Repair: {outcome.repaired}")
        screen.show(repair(outcome.repaired))
    for result in outcome.trained:
        screen.say(f"Trained: {result}")
    if outcome.thinned is not None:
        screen.say(f"Zeros: {outcome.thinned}")
        screen.show(by_role(outcome.thinned))
        screen.say(speed_said(outcome.thinned.config))
    if outcome.healed is not None:
        screen.say(f"Healed: {outcome.healed.training}")
    if outcome.not_healed:
        screen.say(f"Not healed: {outcome.not_healed}")
    screen.show(figures(evaluation))
    screen.show(generations(evaluation.generations))
    screen.say(f"Plan: {plan}; {sizes_said(plan)}")
    say_removed(screen, plan)
    files = [("checkpoint", "model"), ("card", "model/README.md"), ("figures", "evaluation.json"), ("report", "report.html")]
    if outcome.scan is not None:
        files.insert(2, HEAT_MAP)
    files += [("scores", "scores.json"), ("search", "search.json")]
    say_files(screen, outcome.folder, *files)
    if outcome.healed is not None:
        cut = outcome.folder / CUT
        size = in_bytes(sum(file.stat().st_size for file in cut.iterdir()))
        screen.say(f"unhealed:   {cut} ({size}; it may go, and the same command makes it again)")
    for line in next_steps(outcome.folder, plan, is_healed=outcome.healed is not None):
        screen.say(line)
    screen.result(
        {
            "model": str(outcome.model),
            "plan": plan.model_dump(mode="json"),
            "repair": outcome.repaired and outcome.repaired.model_dump(mode="json"),
            "trained": [one.model_dump(mode="json") for one in outcome.trained],
            "pruned": outcome.thinned and outcome.thinned.model_dump(mode="json"),
            "healed": outcome.healed and outcome.healed.training.model_dump(mode="json"),
            "merging": outcome.healed and outcome.healed.merging.model_dump(mode="json"),
            "not_healed": outcome.not_healed or None,
            "evaluation": evaluation.model_dump(mode="json"),
        }
    )


def say_beside(screen: Screen, found: Beside) -> None:
    """What the source's folder holds beside the decoder, where there is anything."""
    if str(found):
        screen.say(f"Beside the decoder: {found}")


def settle_time(
    screen: Screen, inputs: Inputs, folder: RunFolder, *, seconds: float | None, spare: HealConfig | None = None
) -> Inputs:
    """Say how long the run will take, and choose what fits where a time was given.

    Args:
        spare: the healing that time which is left may go to where the recipe asks for none.
    Raises:
        ValueError: a time, and layers that are read from disk, or a recipe that leaves nothing to choose.
    """
    if inputs.is_streamed:  # The time of such a run is that of the disk.
        if seconds is not None:
            raise ValueError("--time needs all layers in memory; leave it out, or give --resident all")
        return inputs
    rates = measure_rates(inputs)
    if seconds is not None:
        recipe_file = folder / "recipe.yaml"
        begun = recipe_file if recipe_file.exists() and not folder.overwrite else None
        why = ""
        if begun is None and spare is not None and inputs.recipe.heal is None:
            why = no_room_to_heal(inputs, spare)
        inputs, chosen = in_time(inputs, rates, seconds, begun=begun, spare=None if why else spare)
        if why:
            inputs = replace(inputs, not_healed=why)
        screen.say(f"Time: {chosen}")
        if inputs.not_healed:
            screen.say(f"Not healed: {inputs.not_healed}")
    say_time(screen, Pace(inputs, rates), folder, STAGES.values())
    say_candidates(screen, inputs.recipe)
    return inputs


def say_time(screen: Screen, pace: Pace, folder: RunFolder, stages: Iterable[Stage]) -> None:
    """The minutes of those of some stages that are not finished yet; from here on progress says how far the whole is."""
    asked = [one for one in stages if one.is_asked(pace.recipe)]
    lasts = [0.0 if one.name in folder.record.stages else estimate(pace, [one]).seconds for one in asked]
    left = estimate(pace, [one for one in asked if one.name not in folder.record.stages])
    if left.stages:
        screen.say(f"Takes {left}")
        screen.expect(lasts)


def say_candidates(screen: Screen, recipe: Recipe) -> None:
    """That several candidates are repaired before one is chosen: most of the time of a plan, and often of a run."""
    if recipe.guard > 1 and repairs_candidates(recipe):
        screen.say(
            f"Candidates: {recipe.guard} are repaired and compared before one is chosen; "
            "--guard 1 takes the score's first choice and repairs nothing before it"
        )


def say_spread(screen: Screen, plan: Plan) -> None:
    """What the selector alone would have chosen on parts of the text."""
    if plan.spread:
        screen.say(f"Choice {spread_said(plan.spread)}")


def say_removed(screen: Screen, plan: Plan) -> None:
    """Every share that goes, side by side, and what a stock checkpoint makes of sublayers that are off."""
    if plan.removed and (plan.removed_layers or plan.removed_units):
        screen.say(f"Removes {removed_said(plan)}")
    if zeroed := zeroed_said(plan):
        screen.say(zeroed)


def show_tasks(screen: Screen, found: Evaluation) -> None:
    """Tasks, what the table cannot say, a warning where the measures disagree, and flips."""
    if found.tasks is None:
        return
    screen.show(accuracy(found.tasks))
    screen.show(agreement(found.tasks))
    for note in task_notes(found.tasks):
        screen.say(note)
    show_flips(screen, [one.answers for one in found.tasks.tasks])
    ours, theirs = found.teacher.perplexity, found.student.perplexity
    warning = disagreement(kept_shares(found.tasks, teacher=ours, student=theirs))
    if warning is not None:
        screen.say(warning)


def show_flips(screen: Screen, results: Sequence[Stability]) -> None:
    """The first flips of every task, where there are any."""
    if any(one.right_to_wrong or one.wrong_to_right for one in results):
        screen.show(flips(results))
    elif results:
        screen.say("No flips: both models have the same items right")


def next_steps(folder: Path, plan: Plan, *, is_healed: bool) -> list[str]:
    """What people do with a student, as commands: measure it on tasks of their own, train it on, serve it."""
    from shoal.export.gguf.convert import why_not

    run, source = shlex.quote(str(folder)), shlex.quote(plan.source)
    steps = {"measure tasks": f"shoal compare {source} {run} --task FILE.jsonl"}
    config = read_json(folder / "model" / "config.json")
    if config.get("quantization_config"):  # Training and files of other engines need plain weights.
        steps["plain weights"] = f"shoal export plain {run} --out {run}-plain"
        return steps_said(steps)
    if not is_healed:
        # Zeros are what was asked for: pruned weights, and sublayers that are gone.
        has_zeros = any(isinstance(edit, Prune) for edit in plan.edits) or bool(units_off(plan.structure))
        steps["train it on"] = f"shoal heal {run}{' --keep-zeros' if has_zeros else ''} --out {run}-healed"
    if not plan.brings_code:  # Other engines do not run a checkpoint with code.
        file = plan.source if plan.source.endswith(".gguf") else "TEACHER.gguf"
        like = "" if why_not(config) is None and file != plan.source else f" --like {shlex.quote(file)}"
        steps["llama.cpp"] = f"shoal export gguf {run}{like} --out student.gguf"
    return steps_said(steps)


def say_files(screen: Screen, folder: Path, *files: tuple[str, str]) -> None:
    """Where each file of a finished run is; a picture that was not drawn says how to get it."""
    for what, name in files:
        if (folder / name).exists():
            screen.say(f"{what + ':':<12}{folder / name}")
        elif (what, name) == HEAT_MAP:
            screen.say("heat map:   not drawn; pip install 'shoal[plot]'")
