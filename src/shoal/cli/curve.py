"""The verb ``curve``: quality against the removed share, for several methods."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from shoal.cli.groups import MachineOptions, ResultOptions, SampleOptions, TextOptions
from shoal.cli.option import option
from shoal.cli.options import FitTokensOption, ItemsOption, ModelOption, OutOption, ProtectOption, TrainTokensOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import command_line, given, verb
from shoal.select.budget_range import MOST_POINTS

if TYPE_CHECKING:
    from shoal.recipes.recipe import Recipe

DEFAULT_METHODS = "none,uidl,shortgpt"


@dataclass(frozen=True)
class CurveOptions:
    """Which cuts are made, by which methods, and what the largest good one is told by."""

    drop: Annotated[str, option("RANGE", "0..50% of all parameters, 0..50%layers, 0..8 layers, or an upper end.")] = "0..50%"
    methods: Annotated[
        str,
        option(
            "NAMES",
            "With commas: none (plain removal, guarded), a repair (refit, sweep), a replacement (layer), a recipe or YAML "
            "file, or joined ones such as uidl+sweep.",
        ),
    ] = DEFAULT_METHODS
    points: Annotated[
        int | None, option("N", "Cuts per method, evenly spaced.", f"every number of layers, at most {MOST_POINTS}")
    ] = None
    task: Annotated[
        list[Path] | None,
        option("FILE", "Task file of choices or last words, as for shoal eval; may be repeated.", "none"),
    ] = None
    items: ItemsOption = None
    keep: Annotated[
        str | None,
        option("SHARE", "Say the largest cut that keeps so much of the teacher's quality, such as 95%.", "none is said"),
    ] = None
    of: Annotated[
        str,
        option(
            "NAME", "What --keep is told of: perplexity (teacher's / student's), kl (exp of minus KL), or a task (accuracy)."
        ),
    ] = "perplexity"


@dataclass(frozen=True)
class CurveRepairOptions:
    """What the methods that repair or train are given."""

    protect: ProtectOption = None
    fit_tokens: FitTokensOption = None
    train_tokens: TrainTokensOption = None


@verb
def curve(
    model: ModelOption,
    out: OutOption,
    asked: CurveOptions,
    repair: CurveRepairOptions,
    text: TextOptions,
    sampling: SampleOptions,
    machine: MachineOptions,
    result: ResultOptions,
) -> None:
    """Cut by every ratio of a range with several methods: KL, perplexity, tasks, the cliff, and what can be cut safely."""
    if asked.keep is None and asked.of != "perplexity":
        raise ValueError(f"--of {asked.of} says what --keep is told of; give --keep as well, such as --keep 95%")
    share = None if asked.keep is None else parse_keep(asked.keep)
    common = dict(model=model, protect=repair.protect, **given(text, sampling))
    samples = common.pop("samples")
    recipes = _recipes(asked.methods, common, fit_tokens=repair.fit_tokens, train_tokens=repair.train_tokens)
    recipes = with_samples(recipes, samples)

    from shoal.cli.show import say_files
    from shoal.evaluate.curve.largest_cut import sentence
    from shoal.run.asked_tasks import task_files
    from shoal.run.begin import say_text, settled
    from shoal.run.curve.over_ratios import Keeping, measure_curves
    from shoal.run.job import SHARE_BESIDE_STUDENT
    from shoal.run.stages.report import report_stage
    from shoal.show.chart_files import save_panels
    from shoal.show.curve_views import cliff_lines, curves_charts, curves_table, smooth_lines

    screen = result.screen()
    wanted = None if share is None else Keeping(share, asked.of)
    tasks = task_files(asked.task or (), n_items=asked.items)
    say_text(next(iter(recipes.values())), screen.say)
    with screen.progress():
        opening = settled(model, machine.opening, share=SHARE_BESIDE_STUDENT, say=screen.say)
        found = measure_curves(
            recipes,
            out,
            drop=asked.drop,
            n_points=asked.points,
            tasks=tasks,
            keep=wanted,
            opening=opening,
            overwrite=result.overwrite,
            command=command_line(),
        )
    with screen.working("draw the report"):
        save_panels(curves_charts(found), out, "curve")
        report_stage(out)
    screen.show(curves_table(found))
    for line in (*cliff_lines(found), *smooth_lines(found)):
        screen.say(line)
    for one in found.kept:
        screen.say(sentence(one))
    say_files(screen, out, ("figures", "curve.json"), ("curve", "curve.png"), ("report", "report.html"))
    screen.result(found.model_dump(mode="json"))


def parse_keep(text: str) -> float:
    """``95%`` or ``0.95`` as a number.

    Raises:
        ValueError: not a share above 0 and up to 100 %.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 < value <= 1:
        raise ValueError(f"--keep {text!r} needs a share of the teacher's quality above 0% and up to 100%, such as 95%")
    return value


def with_samples(recipes: dict[str, Recipe], samples: int | None) -> dict[str, Recipe]:
    """The recipes with so many calibration samples, which those share that read any.

    Raises:
        ValueError: none of them reads calibration text.
    """
    from shoal.recipes.reads import reads_calibration
    from shoal.recipes.recipe_file import with_changes

    if samples is None:
        return recipes
    if not any(map(reads_calibration, recipes.values())):
        raise ValueError("--samples is not read: it is text to choose by, and no method reads any; leave it out")
    return {name: with_changes(recipe, {"text": {"samples": samples}}) for name, recipe in recipes.items()}


def _recipes(methods: str, common: dict[str, Any], *, fit_tokens: int | None, train_tokens: int | None) -> dict[str, Recipe]:
    """Recipes by method; tokens go to the methods that repair, or train.

    Raises:
        ValueError: an unknown method, a value that is not allowed, or tokens that no method reads.
    """
    from shoal.run.curve.methods import method_choice, method_names

    found: dict[str, Recipe] = {}
    reads_fit = reads_train = False
    for name in method_names(methods):
        recipe, changes = method_choice(name)
        chosen = with_options(recipe, **common, **changes)
        fits, trains = chosen.repair != "none", chosen.training() is not None
        tokens = {"fit_tokens": fit_tokens if fits else None, "train_tokens": train_tokens if trains else None}
        found[name] = with_options(recipe, **common, **changes, **tokens)
        reads_fit, reads_train = reads_fit or fits, reads_train or trains
    if fit_tokens is not None and not reads_fit:
        raise ValueError("--fit-tokens is for a repair, and no method has one; add refit to --methods")
    if train_tokens is not None and not reads_train:
        raise ValueError("--train-tokens is for training, and no method trains; add layer to --methods")
    return found
