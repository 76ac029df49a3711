"""Options that several verbs share, in groups: every option and its help line stands here or in ``options.py`` once.

The fields are named as :func:`shoal.cli.recipe_options.with_options` takes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.help import HEALED, MACHINE, METHOD, REMOVED, REPAIRED, TASKS, TEXT, ZEROS, default
from shoal.cli.options import (
    DEFAULT,
    ByOption,
    DeviceOption,
    DropOption,
    FitTokensOption,
    ItemsOption,
    JsonOption,
    KeepOption,
    LayersOption,
    LengthOption,
    ProtectOption,
    RemoteOption,
    SeedOption,
    TrainTokensOption,
)
from shoal.edits.replace.table import REPLACEMENTS
from shoal.engine.opening import Opening
from shoal.fit.table import repairs_said
from shoal.prune.table import PRUNERS
from shoal.recipes.table import RECIPES
from shoal.run.job import DEFAULT_SLICE_TOKENS, MOST_DEFAULT
from shoal.select.table import SELECTORS
from shoal.train.config import MOST_LR, RATE_TIMES_WIDTH
from shoal.train.heal.config import DEFAULT_HEAL_TOKENS
from shoal.words.counts import parse_count

if TYPE_CHECKING:
    from shoal.cli.console import Screen
    from shoal.run.asked_tasks import Tasks

EFFORTS = ("low", "default", "high")


def samples_said(slice: str) -> str:
    """How many samples of a slice are read where none are asked for."""
    return f"{MOST_DEFAULT[slice]}, or {DEFAULT_SLICE_TOKENS[slice]:,} tokens where that is fewer"


def evaluations_said() -> str:
    """What the searches of the table ask for, at one size that people know."""
    n_layers, n_removed = 32, 8
    counts = [f"{name} {one.n_evaluations(n_layers, n_removed):,}" for name, one in SELECTORS.items() if one.n_evaluations]
    return f"all that the search asks for; for {n_removed} of {n_layers} layers {', '.join(counts)}"


@dataclass(frozen=True)
class TextOptions:
    """Which text is read."""

    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="PATH",
            help=".txt, .jsonl, .json, .csv, .parquet, a folder, hub:NAME, mix:slimpajama, or a mixture such as "
            "0.7*a.txt+0.3*b.jsonl; may be repeated." + default("the bundled sample"),
        ),
    ] = None
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            metavar="NAME",
            help="Column of --text that holds the text or the turns of a chat, such as body or meta.text."
            + default("text, messages, conversations, prompt + completion, instruction + output, content, ..."),
            rich_help_panel=TEXT,
        ),
    ] = None


@dataclass(frozen=True)
class SampleOptions:
    """How much of the text the calibration reads, and in which order."""

    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            help="Calibration samples." + default(samples_said("calibration")),
            rich_help_panel=TEXT,
        ),
    ] = None
    length: LengthOption = None
    seed: SeedOption = None


@dataclass(frozen=True)
class EvaluationOptions:
    """How much of the text an evaluation reads, and in which order."""

    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            help="Evaluation samples." + default(samples_said("evaluation")),
            rich_help_panel=TEXT,
        ),
    ] = None
    length: LengthOption = None
    seed: SeedOption = None

    def given(self) -> dict[str, int | None]:
        """By the names of a recipe's options."""
        return {"evaluation": self.samples, "length": self.length, "seed": self.seed}


@dataclass(frozen=True)
class PlaceOptions:
    """Where models run, in which precision, and whether their own code may."""

    device: DeviceOption = "cpu"
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="float32, bfloat16 or float16." + default("the checkpoint's"),
            rich_help_panel=MACHINE,
        ),
    ] = None
    trust_remote_code: RemoteOption = False

    @property
    def opening(self) -> Opening:
        """As one value."""
        return Opening(device=self.device, dtype=self.dtype, trust=self.trust_remote_code)


@dataclass(frozen=True)
class MachineOptions:
    """As :class:`PlaceOptions`, for verbs that can leave layers on disk."""

    place: PlaceOptions
    resident: Annotated[
        str,
        typer.Option(
            "--resident",
            metavar="N",
            help="Layers in memory: all, a number (the rest is read from disk as needed), or auto: all that fit.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto"

    @property
    def opening(self) -> Opening:
        """As one value."""
        return replace(self.place.opening, resident=self.resident)


@dataclass(frozen=True)
class ResultOptions:
    """What happens to results: may they replace older ones, and who reads them."""

    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace finished steps that were run with other options.")] = (
        False
    )
    json: JsonOption = False

    def screen(self) -> Screen:
        """Where the verb talks to people."""
        from shoal.cli.console import Screen

        return Screen(as_json=self.json)


@dataclass(frozen=True)
class MethodOptions:
    """Which recipe the other options override."""

    effort: Annotated[
        str | None,
        typer.Option(
            "--effort",
            metavar="NAME",
            help="low: two candidates, only the layer before each cut is refitted; default: four, and every kept layer from "
            "there on; high: then trains what was set." + default("default"),
        ),
    ] = None
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help=f"{', '.join(RECIPES)}, or a YAML file. Options override it; the defaults shown are those of the recipe "
            "default.",
            rich_help_panel=METHOD,
        ),
    ] = "default"

    @property
    def name(self) -> str:
        """The recipe that is meant; an effort is the recipe of its name.

        Raises:
            ValueError: an unknown effort, or an effort beside another recipe.
        """
        if self.effort is None:
            return self.recipe
        if self.effort not in EFFORTS:
            raise ValueError(f"--effort {self.effort!r} needs one of {', '.join(EFFORTS)}")
        if self.recipe not in ("default", self.effort):
            raise ValueError(f"--effort {self.effort} and --recipe {self.recipe} are two methods; give one of them")
        return self.effort


@dataclass(frozen=True)
class BudgetOptions:
    """How much is removed, or what."""

    drop: DropOption = None
    params: Annotated[
        str | None,
        typer.Option(
            "--params",
            metavar="SIZE",
            help="Target size instead of --drop, such as 6B." + default(f"as --drop {DEFAULT.drop} leaves"),
            rich_help_panel=REMOVED,
        ),
    ] = None
    size: Annotated[str | None, typer.Option("--size", help="Target size of the weights instead of --drop, such as 4GB.")] = (
        None
    )
    layers: LayersOption = None
    keep: KeepOption = None


@dataclass(frozen=True)
class ChoiceOptions:
    """What is removed: the selector, what it goes by, and what must stay."""

    select: Annotated[
        str | None,
        typer.Option(
            "--select",
            metavar="NAME",
            help=f"{', '.join(SELECTORS)}." + default(DEFAULT.select),
            rich_help_panel=REMOVED,
        ),
    ] = None
    units: Annotated[
        str | None,
        typer.Option(
            "--units",
            metavar="WHAT",
            help="What goes: layers, sublayers, attention or mlp." + default(DEFAULT.units),
            rich_help_panel=REMOVED,
        ),
    ] = None
    by: ByOption = None
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="What a selector that runs the model goes by, such as kl, js or ce." + default(DEFAULT.search.metric),
            rich_help_panel=REMOVED,
        ),
    ] = None
    evaluations: Annotated[
        int | None,
        typer.Option(
            "--evaluations",
            metavar="N",
            help="Most sets that such a selector runs." + default(evaluations_said()),
            rich_help_panel=REMOVED,
        ),
    ] = None
    guard: Annotated[
        int | None,
        typer.Option(
            "--guard",
            metavar="N",
            help="Candidates that are repaired on a part of the text and compared by KL to the teacher; 1: none is, the "
            "score's first choice stands." + default(DEFAULT.guard),
            rich_help_panel=REMOVED,
        ),
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            metavar="N",
            help="Cut in that many steps, measuring anew." + default(DEFAULT.rounds),
            rich_help_panel=REMOVED,
        ),
    ] = None
    protect: ProtectOption = None


@dataclass(frozen=True)
class RepairOptions:
    """What is put in place of what goes, in closed form and by training exactly that."""

    repair: Annotated[
        str | None,
        typer.Option(
            "--repair",
            metavar="NAME",
            help="Closed form: no training and, without a replacement, no new parameters. "
            + repairs_said()
            + "."
            + default(f"{DEFAULT.repair}, or none with --replace"),
            rich_help_panel=REPAIRED,
        ),
    ] = None
    fit_tokens: FitTokensOption = None
    replace: Annotated[
        str | None,
        typer.Option(
            "--replace",
            metavar="NAME",
            help=f"none, {', '.join(REPLACEMENTS)}; options behind the name, such as swiglu:width=1024. By itself it replaces "
            "the default's repair." + default(DEFAULT.replace),
            rich_help_panel=REPAIRED,
        ),
    ] = None
    polish: Annotated[
        str | None,
        typer.Option(
            "--polish",
            metavar="NAME",
            help="Train exactly what --replace and --repair put in: on hidden states (hidden), on the teacher's logits (kl), "
            "or none." + default("none, or hidden with --replace"),
            rich_help_panel=REPAIRED,
        ),
    ] = None
    train_tokens: TrainTokensOption = None


@dataclass(frozen=True)
class ZeroOptions:
    """Weights set to zero behind the repair."""

    prune: Annotated[
        str | None,
        typer.Option(
            "--prune",
            metavar="NAME",
            help=f"Then set weights of the layers that stay to zero: {', '.join(PRUNERS)}, or none; options behind the name, "
            "such as wanda:sparsity=50%,allocate=owl or wanda:pattern=2:4." + default("none"),
            rich_help_panel=ZEROS,
        ),
    ] = None


@dataclass(frozen=True)
class RecipeOptions:
    """All that makes a plan."""

    budget: BudgetOptions
    text: TextOptions
    sampling: SampleOptions
    choice: ChoiceOptions
    repair: RepairOptions


@dataclass(frozen=True)
class HealOptions:
    """Training of more than a repair set."""

    heal: Annotated[
        str | None,
        typer.Option(
            "--heal",
            metavar="NAME",
            help="Then train more than the repair set: lora, qlora, partial, new, full, norms, or none (`shoal heal --help`)."
            + default("none"),
        ),
    ] = None
    heal_tokens: Annotated[
        int | None,
        typer.Option(
            "--heal-tokens",
            parser=parse_count,
            metavar="N",
            help="Tokens of healing." + default(f"{DEFAULT_HEAL_TOKENS:,}, or all that the text holds"),
            rich_help_panel=HEALED,
        ),
    ] = None


@dataclass(frozen=True)
class HealingOptions:
    """Training behind the repair, and the rate of the training before it."""

    heal: HealOptions
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="RATE",
            help="Peak learning rate of --polish." + default(f"{RATE_TIMES_WIDTH:.2g} / hidden size, at most {MOST_LR:g}"),
            rich_help_panel=REPAIRED,
        ),
    ] = None


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks are answered."""

    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="FILE|NAME",
            help="Task file (JSON lines with ctx, choices, gold; ctx, target; ctx, answer; or question, answer), or a task of "
            "lm-eval by name; may be repeated." + default("none"),
        ),
    ] = None
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            metavar="N",
            help="Solved examples before each item: first items of the file." + default("0; the task's own for lm-eval"),
            rich_help_panel=TASKS,
        ),
    ] = None
    items: ItemsOption = None
    include: Annotated[
        Path | None,
        typer.Option(
            "--include",
            metavar="DIR",
            help="Folder of lm-eval's YAML tasks of your own." + default("none"),
            rich_help_panel=TASKS,
        ),
    ] = None

    def open(self) -> Tasks:
        """The tasks that were asked for, read.

        Raises:
            ValueError, ImportError: as :func:`shoal.run.asked_tasks.open_tasks` says.
        """
        from shoal.run.asked_tasks import open_tasks

        return open_tasks(self.task or (), shots=self.shots, n_items=self.items, include=self.include)
