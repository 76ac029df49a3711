"""The options of the command, each defined once, and how they turn into a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from shoal.edits.replace.table import REPLACEMENTS
from shoal.fit.table import repairs_said
from shoal.measure.observers import observers_said
from shoal.recipes.table import RECIPES
from shoal.select.table import SELECTORS

if TYPE_CHECKING:
    from shoal.measure.scan import Asked
    from shoal.recipes.recipe import Recipe

# Optional[...], not X | None: typer reads these at run time.
ModelOption = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder of a causal language model.")]
OutOption = Annotated[Path, typer.Option("--out", help="Run folder: new, empty, or of an earlier run, which is continued.")]
TextOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--text",
        help="Text: .txt, .jsonl, .json, .csv, .parquet, a folder, hub:NAME, mix:slimpajama, or a mixture such as "
        "0.7*a.txt+0.3*b.jsonl; may be repeated.  [default: the bundled sample]",
    ),
]
FieldOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--field",
        metavar="NAME",
        help="Column of --text that holds the text or the turns of a chat, such as body or meta.text.  [default: text, "
        "messages, conversations, prompt + completion, instruction + output, content, ...]",
    ),
]
SamplesOption = Annotated[Optional[int], typer.Option("--samples", help="Calibration samples.  [default: up to 128]")]  # noqa: UP045
LengthOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--length", help="Tokens per sample.  [default: the model's window, at most 1024]"),
]
EFFORTS = ("low", "default", "high")

DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1.")]
ResidentOption = Annotated[
    str,
    typer.Option("--resident", help="Layers in memory: all, a number (the rest is read from disk as needed), or auto."),
]
DtypeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--dtype", help="float32, bfloat16 or float16.  [default: the checkpoint's]"),
]
NoSpeedOption = Annotated[
    bool,
    typer.Option("--no-speed", help="Leave out how fast teacher and student run (else at most a tenth of the run's time)."),
]
SeedOption = Annotated[Optional[int], typer.Option("--seed", help="Order of the text.  [default: 0]")]  # noqa: UP045
RemoteOption = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace finished steps that were run with other options.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout; tables and progress on stderr.")]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        help=f"{', '.join(RECIPES)}, or a YAML file. Options override it; the defaults shown are those of the recipe default.",
    ),
]
EffortOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--effort",
        help="low: two candidates, only the layer before each cut is refitted; default: forward passes and linear solves of "
        "every kept layer from there on; high: then trains the layer before each cut whole, with all that they "
        "set (recipe high).",
    ),
]
DropOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--drop", help="25% of all parameters, 8 layers, or 25%layers; net of replacements.  [default: 25%]"),
]
ParametersOption = Annotated[Optional[str], typer.Option("--params", help="Target size instead of --drop, such as 6B.")]  # noqa: UP045
SelectOption = Annotated[Optional[str], typer.Option("--select", help=f"{', '.join(SELECTORS)}.  [default: span]")]  # noqa: UP045
MetricOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--metric", help="What a selector that runs the model goes by, such as kl, js or ce.  [default: kl]"),
]
EvaluationsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--evaluations", help="Most sets of layers that such a selector runs.  [default: what the search asks for]"),
]
ByOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--by", help="Score to select by, such as angular/last.  [default: cosine/rest]"),
]
ObserveOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--observe", help=f"Measure more of every span; may be repeated. {observers_said()}."),
]
GuardOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--guard", help="Candidates compared by their KL to the teacher; 1 trusts the score.  [default: 4]"),
]
RoundsOption = Annotated[Optional[int], typer.Option("--rounds", help="Cut in that many steps, measuring anew.  [default: 1]")]  # noqa: UP045
ProtectOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--protect",
        help="Layers that are not removed, such as 0,1,-1, or none; a replacement may still retrain one.  [default: 0,-1]",
    ),
]
ReplaceOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--replace",
        help=f"none, {', '.join(REPLACEMENTS)}; options behind the name, such as swiglu:width=1024. By itself it replaces "
        "the default's repair.  [default: none]",
    ),
]
RepairOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--repair",
        help="Closed form: no training and, without a replacement, no new parameters. "
        + repairs_said()
        + ".  [default: auto, or none with --replace]",
    ),
]
FitTokensOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--fit-tokens", help="Tokens the repair reads.  [default: 40 per input of the widest map, at least 48 k]"),
]
TimeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--time",
        help="Make the best of that much time, such as 10m: sets repair, candidates and tokens; recipe.yaml records them.",
    ),
]
PolishOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--polish",
        help="Train exactly what --replace and --repair put in: on hidden states, on the teacher's logits (kl), or none.  "
        "[default: as the recipe says, else hidden with a replacement, else none]",
    ),
]
TrainTokensOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--train-tokens", help="Tokens of the training.  [default: up to 1 M]"),
]
HealOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--heal", help="Then train more than the repair set: lora, qlora, partial, full, norms, or none (`shoal heal --help`)."
    ),
]
HealTokensOption = Annotated[Optional[int], typer.Option("--heal-tokens", help="Tokens of healing.  [default: up to 1 M]")]  # noqa: UP045
LearningRateOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--lr", help="Peak learning rate.  [default: 0.8 / hidden size, at most 8e-3]"),
]

EvaluationSamplesOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--samples", help="Evaluation samples.  [default: up to 64]"),
]
TaskOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--task",
        metavar="FILE|NAME",
        help="Task file (JSON lines with ctx, choices, gold; ctx, target; ctx, answer; or question, answer), or a task of "
        "lm-eval by name; may be repeated.",
    ),
]
ShotsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--shots", help="Solved examples before each item: first items of the file.  [default: 0, or the task's]"),
]
ItemsOption = Annotated[Optional[int], typer.Option("--items", help="The first items of every task.  [default: all]")]  # noqa: UP045
IncludeOption = Annotated[Optional[Path], typer.Option("--include", help="Folder of lm-eval's YAML tasks of your own.")]  # noqa: UP045


def recipe_of(recipe: str, effort: str | None) -> str:
    """The recipe that an effort means; both are names of recipes.

    Raises:
        ValueError: an unknown effort, or an effort beside another recipe.
    """
    if effort is None:
        return recipe
    if effort not in EFFORTS:
        raise ValueError(f"--effort {effort!r} needs one of {', '.join(EFFORTS)}")
    if recipe not in ("default", effort):
        raise ValueError(f"--effort {effort} and --recipe {recipe} are two methods; give one of them")
    return effort


def with_options(recipe: str, **options: Any) -> Recipe:
    """The named recipe with the options that were given on top; validated like a recipe file.

    Args:
        options: by name; ``asked`` is what a scan that is there was asked for, and holds where no option says otherwise.
    Raises:
        ValueError: an unknown recipe, or a value that is not allowed.
    """
    from shoal.recipes.recipe_file import load_recipe

    given = {name: value for name, value in options.items() if value is not None}
    asked: Asked | None = given.pop("asked", None)
    text: dict[str, Any] = {name: given.pop(name) for name in ("field", "samples", "length", "evaluation") if name in given}
    if "text" in given:
        text["sources"] = given.pop("text")
    train = {field: given.pop(name) for name, field in (("train_tokens", "tokens"), ("lr", "lr")) if name in given}
    fit = {"tokens": given.pop("fit_tokens")} if "fit_tokens" in given else {}
    search = {name: given.pop(name) for name in ("metric", "evaluations") if name in given}
    if "params" in given and "drop" in given:
        raise ValueError("--drop and --params are two budgets; give one of them")
    if "params" in given:
        given["parameters"] = given.pop("params")
    elif "drop" in given:
        given["parameters"] = None
    if "protect" in given:
        given["protect"] = _layers(given["protect"])
    if train and "lr" in train:
        train["min_lr"] = train["lr"] / 10
    if asked:
        given = {"seed": asked.seed, "observers": asked.observers, **given}
        text = {**{name: value for name, value in asked.text.items() if value is not None}, **text}
    heal: dict[str, Any] = {"tokens": given.pop("heal_tokens")} if "heal_tokens" in given else {}
    if given.get("heal") == "none":
        given["heal"] = None
    elif "heal" in given:
        heal["method"] = given.pop("heal")
    if heal and "method" not in heal and ("heal" in given or load_recipe(recipe).heal is None):
        raise ValueError("--heal-tokens is for healing, and nothing is healed; add --heal lora")
    nested = {"heal": heal, "text": text, "fit": fit, "train": train, "search": search}
    changes: dict[str, Any] = {**given, **{name: below for name, below in nested.items() if below}}
    found = load_recipe(recipe, changes)
    refuse_unread(found, options)
    if train and found.training() is None:
        raise ValueError(
            "--train-tokens and --lr are for training, and nothing is trained; add --polish kl, or --replace layer"
        )
    running = [name for name, one in SELECTORS.items() if "values" in one.reads]
    if search and found.select not in running:
        raise ValueError(f"--metric and --evaluations are for selectors that run the model: --select {', '.join(running)}")
    if fit and found.repair == "none":
        raise ValueError("--fit-tokens is for a repair, and there is none; add --repair auto")
    return found


UNREAD = ("text", "field", "samples", "length", "seed", "dtype")
"""Options that a plan made from config and names alone does not read."""


def refuse_unread(chosen: Recipe, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that was given and that this recipe does not read: it would be dropped in silence."""
    from shoal.select.table import selector_named

    if "tables" in selector_named(chosen.select).reads:
        return
    if options.get("by") is not None:
        raise ValueError(
            f"--by {options['by']} is a score to select by, and --select {chosen.select} reads none; leave it out, or choose "
            "another --select"
        )
    if options.get("rounds") is not None and chosen.rounds > 1 and not selector_named(chosen.select).reads:
        raise ValueError(f"--rounds measures anew after each cut, and --select {chosen.select} reads no measure; leave it out")


def refuse_unopened(options: Mapping[str, Any], *, device: str, resident: str) -> None:
    """Raises ValueError for options of text and machine where a plan needs neither."""
    given = [name for name in UNREAD if options.get(name) is not None]
    given += [name for name, value, default in (("device", device, "cpu"), ("resident", resident, "auto")) if value != default]
    if given:
        raise ValueError(
            f"--{given[0]} is not read: this plan follows from config and names alone, no text is read and no model opened; "
            "leave it out, or choose another --select or --guard"
        )


def _layers(text: str) -> list[int]:
    try:
        return [] if text == "none" else [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--protect {text!r} needs layer numbers with commas, such as 0,1,-1, or none") from None
