"""Options of a recipe in groups: what is removed, how the cut is repaired, what is trained."""

from dataclasses import dataclass
from typing import Annotated

from shoal.cli.groups import SampleOptions, TextOptions
from shoal.cli.help import HEALED, METHOD, REMOVED, REPAIRED, ZEROS
from shoal.cli.option import listed, option
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
from shoal.fit.table import REPAIRS
from shoal.measure.metrics import METRICS
from shoal.measure.task_metric import TASK
from shoal.prune.table import PRUNERS
from shoal.recipes.table import RECIPES
from shoal.select.table import SELECTORS
from shoal.train.config import MOST_LR, RATE_TIMES_WIDTH
from shoal.train.heal.config import DEFAULT_HEAL_TOKENS, SHORT_HEAL_TOKENS
from shoal.train.heal.table import TRAINABLE
from shoal.words.counts import parse_count

EFFORTS = ("low", "default", "high")


def evaluations_said() -> str:
    """What the searches of the table ask for, at one size that people know."""
    n_layers, n_removed = 32, 8
    counts = [
        f"{name} {one.n_evaluations(n_layers, n_removed):,}"
        for name, one in SELECTORS.items()
        if one.n_evaluations and "values" in one.reads
    ]
    return f"all that the search asks for; for {n_removed} of {n_layers} layers {', '.join(counts)}"


@dataclass(frozen=True)
class MethodOptions:
    """Which recipe the other options override."""

    effort: Annotated[
        str | None,
        option(
            "NAME",
            "low: two candidates, less text, only the layer before each cut is refitted; default: four, every kept layer from "
            "there on, then LoRA; high: trains every weight instead, on the teacher's logits.",
            "default",
        ),
    ] = None
    recipe: Annotated[
        str,
        option(
            "NAME",
            f"{', '.join(RECIPES)}, or a YAML file. Options override it; the defaults shown are those of the recipe default.",
            under=METHOD,
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
        option("SIZE", "Target size instead of --drop, such as 6B.", f"as --drop {DEFAULT.drop} leaves", under=REMOVED),
    ] = None
    size: Annotated[
        str | None,
        option(
            "BYTES",
            "Target size of the weights instead of --drop, such as 4GB.",
            f"as --drop {DEFAULT.drop} leaves",
            under=REMOVED,
        ),
    ] = None
    layers: LayersOption = None
    keep: KeepOption = None


@dataclass(frozen=True)
class ChoiceOptions:
    """What is removed: the selector, what it goes by, and what must stay."""

    select: Annotated[str | None, option("NAME", f"{', '.join(SELECTORS)}.", DEFAULT.select, under=REMOVED)] = None
    units: Annotated[
        str | None, option("WHAT", "What goes: layers, sublayers, attention or mlp.", DEFAULT.units, under=REMOVED)
    ] = None
    by: ByOption = None
    metric: Annotated[
        str | None,
        option(
            "NAME",
            f"What a selector that runs the model goes by: {', '.join(METRICS)}; {TASK}: answers to --task.",
            DEFAULT.search.metric,
            under=REMOVED,
        ),
    ] = None
    task: Annotated[
        list[str] | None,
        option(
            "FILE",
            "Task file that --metric task, or a score such as windowed_task, asks; repeat for several, each counts alike.",
            "none",
            under=REMOVED,
        ),
    ] = None
    items: Annotated[int | None, option("N", "The first items of each such task.", "all", under=REMOVED)] = None
    evaluations: Annotated[
        int | None, option("N", "Most sets that such a selector runs.", evaluations_said(), under=REMOVED)
    ] = None
    guard: Annotated[
        int | None,
        option(
            "N",
            "Candidates that are repaired on a part of the text and compared by KL to the teacher; 1: none is, the "
            "score's first choice stands. A search competes with the scores: one shot where there are 2, greedy from 3 on.",
            DEFAULT.guard,
            under=REMOVED,
        ),
    ] = None
    rounds: Annotated[int | None, option("N", "Cut in that many steps, measuring anew.", DEFAULT.rounds, under=REMOVED)] = None
    protect: ProtectOption = None


@dataclass(frozen=True)
class RepairOptions:
    """What is put in place of what goes, in closed form and by training exactly that."""

    repair: Annotated[
        str | None,
        option(
            "NAME",
            "Closed form: no training and, without a replacement, no new parameters. " + listed(REPAIRS),
            f"{DEFAULT.repair}, or none with --replace",
            under=REPAIRED,
        ),
    ] = None
    fit_tokens: FitTokensOption = None
    replace: Annotated[
        str | None,
        option(
            "NAME",
            f"none, {', '.join(REPLACEMENTS)}; options behind the name, such as swiglu:width=1024. By itself it replaces "
            "the default's repair.",
            DEFAULT.replace,
            under=REPAIRED,
        ),
    ] = None
    polish: Annotated[
        str | None,
        option(
            "NAME",
            "Train exactly what --replace and --repair put in: on hidden states (hidden), on the teacher's logits (kl), "
            "or none.",
            "none, or hidden with --replace",
            under=REPAIRED,
        ),
    ] = None
    train_tokens: TrainTokensOption = None


@dataclass(frozen=True)
class ZeroOptions:
    """Weights set to zero behind the repair."""

    prune: Annotated[
        str | None,
        option(
            "NAME",
            f"Then set weights of the layers that stay to zero: {', '.join(PRUNERS)}, or none; options behind the name, "
            "such as wanda:sparsity=50%,allocate=owl or wanda:pattern=2:4.",
            "none",
            under=ZEROS,
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
        option(
            "NAME",
            f"Then train more than the repair set: {', '.join(TRAINABLE)}, or none (`shoal heal --help`).",
            f"lora on {SHORT_HEAL_TOKENS:,} tokens where layers go, no repair is named and both models fit into memory",
        ),
    ] = None
    heal_tokens: Annotated[
        int | None,
        option(
            "N",
            "Tokens of healing.",
            f"{SHORT_HEAL_TOKENS:,} where nothing asks for it, else {DEFAULT_HEAL_TOKENS:,}, or all that the text holds",
            under=HEALED,
            parser=parse_count,
        ),
    ] = None


@dataclass(frozen=True)
class HealingOptions:
    """Training behind the repair, and the rate of the training before it."""

    heal: HealOptions
    lr: Annotated[
        float | None,
        option(
            "RATE",
            "Peak learning rate of --polish.",
            f"{RATE_TIMES_WIDTH:.2g} / hidden size, at most {MOST_LR:g}",
            under=REPAIRED,
        ),
    ] = None
