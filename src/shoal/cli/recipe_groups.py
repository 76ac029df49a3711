"""Options of a recipe in groups: what is removed, how the cut is repaired, what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from shoal.cli.groups import SampleOptions, TextOptions
from shoal.cli.help import HEALED, METHOD, REMOVED, REPAIRED, ZEROS, default
from shoal.cli.options import (
    DEFAULT,
    ByOption,
    DropOption,
    FitTokensOption,
    KeepOption,
    LayersOption,
    ProtectOption,
    TrainTokensOption,
)
from shoal.edits.replace.table import REPLACEMENTS
from shoal.fit.table import repairs_said
from shoal.prune.table import PRUNERS
from shoal.recipes.table import RECIPES
from shoal.select.table import SELECTORS
from shoal.train.config import MOST_LR, RATE_TIMES_WIDTH
from shoal.train.heal.config import DEFAULT_HEAL_TOKENS
from shoal.words.counts import parse_count

EFFORTS = ("low", "default", "high")


def evaluations_said() -> str:
    """What the searches of the table ask for, at one size that people know."""
    n_layers, n_removed = 32, 8
    counts = [f"{name} {one.n_evaluations(n_layers, n_removed):,}" for name, one in SELECTORS.items() if one.n_evaluations]
    return f"all that the search asks for; for {n_removed} of {n_layers} layers {', '.join(counts)}"


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
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="BYTES",
            help="Target size of the weights instead of --drop, such as 4GB." + default(f"as --drop {DEFAULT.drop} leaves"),
            rich_help_panel=REMOVED,
        ),
    ] = None
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
