"""Options that several verbs share, in groups: every option and its help line stands here or in ``options.py`` once.

The fields are named as :func:`shoal.cli.recipe_options.with_options` takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.options import (
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
from shoal.fit.table import repairs_said
from shoal.recipes.table import RECIPES
from shoal.select.table import SELECTORS

if TYPE_CHECKING:
    from shoal.cli.console import Screen
    from shoal.run.asked_tasks import Tasks

EFFORTS = ("low", "default", "high")


@dataclass(frozen=True)
class TextOptions:
    """Which text is read."""

    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="Text: .txt, .jsonl, .json, .csv, .parquet, a folder, hub:NAME, mix:slimpajama, or a mixture such as "
            "0.7*a.txt+0.3*b.jsonl; may be repeated.  [default: the bundled sample]",
        ),
    ] = None
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            metavar="NAME",
            help="Column of --text that holds the text or the turns of a chat, such as body or meta.text.  [default: text, "
            "messages, conversations, prompt + completion, instruction + output, content, ...]",
        ),
    ] = None


@dataclass(frozen=True)
class SampleOptions:
    """How much of the text the calibration reads, and in which order."""

    samples: Annotated[int | None, typer.Option("--samples", help="Calibration samples.  [default: up to 128]")] = None
    length: LengthOption = None
    seed: SeedOption = None


@dataclass(frozen=True)
class EvaluationOptions:
    """How much of the text an evaluation reads, and in which order."""

    samples: Annotated[int | None, typer.Option("--samples", help="Evaluation samples.  [default: up to 64]")] = None
    length: LengthOption = None
    seed: SeedOption = None

    def given(self) -> dict[str, int | None]:
        """By the names of a recipe's options."""
        return {"evaluation": self.samples, "length": self.length, "seed": self.seed}


@dataclass(frozen=True)
class PlaceOptions:
    """Where models run, in which precision, and whether their own code may."""

    device: DeviceOption = "cpu"
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.  [default: the checkpoint's]")] = (
        None
    )
    trust_remote_code: RemoteOption = False


@dataclass(frozen=True)
class MachineOptions:
    """As :class:`PlaceOptions`, for verbs that can leave layers on disk."""

    place: PlaceOptions
    resident: Annotated[
        str,
        typer.Option("--resident", help="Layers in memory: all, a number (the rest is read from disk as needed), or auto."),
    ] = "auto"


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

    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help=f"{', '.join(RECIPES)}, or a YAML file. Options override it; the defaults shown are those of the recipe "
            "default.",
        ),
    ] = "default"
    effort: Annotated[
        str | None,
        typer.Option(
            "--effort",
            help="low: two candidates, only the layer before each cut is refitted; default: forward passes and linear solves "
            "of every kept layer from there on; high: then trains the layer before each cut whole, with all that they "
            "set (recipe high).",
        ),
    ] = None

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
    params: Annotated[str | None, typer.Option("--params", help="Target size instead of --drop, such as 6B.")] = None
    layers: LayersOption = None
    keep: KeepOption = None


@dataclass(frozen=True)
class ChoiceOptions:
    """What is removed: the selector, what it goes by, and what must stay."""

    select: Annotated[str | None, typer.Option("--select", help=f"{', '.join(SELECTORS)}.  [default: span]")] = None
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="What a selector that runs the model goes by, such as kl, js or ce.  [default: kl]"),
    ] = None
    evaluations: Annotated[
        int | None,
        typer.Option(
            "--evaluations", help="Most sets of layers that such a selector runs.  [default: what the search asks for]"
        ),
    ] = None
    by: ByOption = None
    guard: Annotated[
        int | None,
        typer.Option("--guard", help="Candidates compared by their KL to the teacher; 1 trusts the score.  [default: 4]"),
    ] = None
    rounds: Annotated[int | None, typer.Option("--rounds", help="Cut in that many steps, measuring anew.  [default: 1]")] = None
    protect: ProtectOption = None


@dataclass(frozen=True)
class RepairOptions:
    """What is put in place of what goes, in closed form and by training exactly that."""

    replace: Annotated[
        str | None,
        typer.Option(
            "--replace",
            help=f"none, {', '.join(REPLACEMENTS)}; options behind the name, such as swiglu:width=1024. By itself it replaces "
            "the default's repair.  [default: none]",
        ),
    ] = None
    repair: Annotated[
        str | None,
        typer.Option(
            "--repair",
            help="Closed form: no training and, without a replacement, no new parameters. "
            + repairs_said()
            + ".  [default: auto, or none with --replace]",
        ),
    ] = None
    fit_tokens: FitTokensOption = None
    polish: Annotated[
        str | None,
        typer.Option(
            "--polish",
            help="Train exactly what --replace and --repair put in: on hidden states, on the teacher's logits (kl), or none.  "
            "[default: as the recipe says, else hidden with a replacement, else none]",
        ),
    ] = None
    train_tokens: TrainTokensOption = None


@dataclass(frozen=True)
class RecipeOptions:
    """All that makes a plan."""

    budget: BudgetOptions
    text: TextOptions
    sampling: SampleOptions
    choice: ChoiceOptions
    repair: RepairOptions


@dataclass(frozen=True)
class HealingOptions:
    """Training behind the repair."""

    heal: Annotated[
        str | None,
        typer.Option(
            "--heal",
            help="Then train more than the repair set: lora, qlora, partial, full, norms, or none (`shoal heal --help`).",
        ),
    ] = None
    heal_tokens: Annotated[int | None, typer.Option("--heal-tokens", help="Tokens of healing.  [default: up to 1 M]")] = None
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate.  [default: 0.8 / hidden size, at most 8e-3]")
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
            "lm-eval by name; may be repeated.",
        ),
    ] = None
    shots: Annotated[
        int | None,
        typer.Option("--shots", help="Solved examples before each item: first items of the file.  [default: 0, or the task's]"),
    ] = None
    items: ItemsOption = None
    include: Annotated[Path | None, typer.Option("--include", help="Folder of lm-eval's YAML tasks of your own.")] = None

    def open(self) -> Tasks:
        """The tasks that were asked for, read.

        Raises:
            ValueError, ImportError: as :func:`shoal.run.asked_tasks.open_tasks` says.
        """
        from shoal.run.asked_tasks import open_tasks

        return open_tasks(self.task or (), shots=self.shots, n_items=self.items, include=self.include)
