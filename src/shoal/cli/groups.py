"""Options that several verbs share, in groups: text, samples, the machine, results, tasks.

Every option and its help line stands here, in ``recipe_groups.py`` or in ``options.py`` once. The fields are named as
:func:`shoal.cli.recipe_options.with_options` takes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.help import MACHINE, TASKS, TEXT, default
from shoal.cli.options import (
    DeviceOption,
    ItemsOption,
    JsonOption,
    LengthOption,
    RemoteOption,
    SeedOption,
)
from shoal.engine.opening import Opening
from shoal.run.job import DEFAULT_SLICE_TOKENS, MOST_DEFAULT

if TYPE_CHECKING:
    from shoal.cli.console import Screen
    from shoal.run.asked_tasks import Tasks


def samples_said(slice: str) -> str:
    """How many samples of a slice are read where none are asked for."""
    return f"{MOST_DEFAULT[slice]}, or {DEFAULT_SLICE_TOKENS[slice]:,} tokens where that is fewer"


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
