"""Options that several verbs share, in groups: text, samples, the machine, results, tasks.

Every option and its help line stands here, in ``recipe_groups.py`` or in ``options.py`` once. The fields are named as
:func:`shoal.cli.recipe_options.with_options` takes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shoal.cli.early import named_texts
from shoal.cli.help import MACHINE, TASKS, TEXT
from shoal.cli.option import flag, option
from shoal.cli.options import (
    DeviceOption,
    ItemsOption,
    JsonOption,
    LengthOption,
    RemoteOption,
    SeedOption,
)
from shoal.engine.opening import Opening
from shoal.recipes.recipe import TextChoice
from shoal.run.job import MOST_DEFAULT, PARTS

if TYPE_CHECKING:
    from shoal.cli.console import Screen
    from shoal.run.asked_tasks import Tasks


def samples_said(slice: str) -> str:
    """How many samples of a slice are read where none are asked for."""
    return f"{MOST_DEFAULT[slice]}, or {PARTS[slice] * TextChoice().tokens:,} tokens where that is fewer"


@dataclass(frozen=True)
class TextOptions:
    """Which text is read."""

    text: Annotated[
        list[str] | None,
        option(
            "PATH",
            ".txt, .jsonl, .json, .csv, .parquet, a folder, hub:NAME, mix:slimpajama, or a mixture such as "
            "0.7*a.txt+0.3*b.jsonl; may be repeated.",
            "the bundled sample",
            callback=named_texts,
        ),
    ] = None
    field: Annotated[
        str | None,
        option(
            "NAME",
            "Column of --text that holds the text or the turns of a chat, such as body or meta.text.",
            "text, messages, conversations, prompt + completion, instruction + output, content, ...",
            under=TEXT,
        ),
    ] = None


@dataclass(frozen=True)
class SampleOptions:
    """How much of the text the calibration reads, and in which order."""

    samples: Annotated[int | None, option("N", "Calibration samples.", samples_said("calibration"), under=TEXT)] = None
    length: LengthOption = None
    seed: SeedOption = None


@dataclass(frozen=True)
class EvaluationOptions:
    """How much of the text an evaluation reads, and in which order."""

    samples: Annotated[int | None, option("N", "Evaluation samples.", samples_said("evaluation"), under=TEXT)] = None
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
        option(
            "NAME",
            "float32, bfloat16 or float16: models run, and students are saved, in it.",
            "the checkpoint's",
            under=MACHINE,
        ),
    ] = None
    trust_remote_code: RemoteOption = False

    @property
    def opening(self) -> Opening:
        """As one value, for verbs that put values into a model, each on one device.

        Raises:
            ValueError: several cards.
        """
        if self.is_spread:
            raise ValueError(
                f"--device {self.device} spreads a model over cards, which eval, compare, write and heal do; this verb takes "
                "one: where a model does not fit on it, its layers are read from disk as needed (--resident of scan, plan, "
                "compress and run)"
            )
        return self.spread

    @property
    def spread(self) -> Opening:
        """As one value, for verbs that run models as they are: several cards are allowed, and then every layer is on one."""
        found = Opening(device=self.device, dtype=self.dtype, trust=self.trust_remote_code)
        return found.in_memory() if self.is_spread else found

    @property
    def is_spread(self) -> bool:
        """Whether several cards are meant."""
        return "," in self.device or self.device == "auto"


@dataclass(frozen=True)
class MachineOptions:
    """As :class:`PlaceOptions`, for verbs that can leave layers on disk."""

    place: PlaceOptions
    resident: Annotated[
        str,
        option(
            "N", "Layers in memory: all, a number (the rest is read from disk as needed), or auto: all that fit.", under=MACHINE
        ),
    ] = "auto"

    @property
    def opening(self) -> Opening:
        """As one value."""
        return replace(self.place.opening, resident=self.resident)

    @property
    def spread(self) -> Opening:
        """As one value, for verbs that run models as they are: on several cards all layers are in memory.

        Raises:
            ValueError: several cards, and a number of layers in memory.
        """
        if not self.place.is_spread:
            return self.opening
        if self.resident not in ("auto", "all"):
            raise ValueError(
                f"--device {self.place.device} spreads all layers over cards, and --resident {self.resident} leaves some on "
                "disk; leave out --resident, or name one card"
            )
        return self.place.spread


@dataclass(frozen=True)
class ResultOptions:
    """What happens to results: may they replace older ones, and who reads them."""

    overwrite: Annotated[bool, flag("--overwrite", "Replace finished steps that were run with other options.")] = False
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
        option(
            "FILE|NAME",
            "Task file (JSON lines with ctx, choices, gold; ctx, target; ctx, answer; or question, answer), or a task of "
            "lm-eval by name; may be repeated.",
            "none",
        ),
    ] = None
    shots: Annotated[
        int | None,
        option("N", "Solved examples before each item: first items of the file.", "0; the task's own for lm-eval", under=TASKS),
    ] = None
    items: ItemsOption = None
    include: Annotated[Path | None, option("DIR", "Folder of lm-eval's YAML tasks of your own.", "none", under=TASKS)] = None

    def open(self) -> Tasks:
        """The tasks that were asked for, read.

        Raises:
            ValueError, ImportError: as :func:`shoal.run.asked_tasks.open_tasks` says.
        """
        from shoal.run.asked_tasks import open_tasks

        return open_tasks(self.task or (), shots=self.shots, n_items=self.items, include=self.include)
