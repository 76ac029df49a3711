"""Options that stand alone in a signature; those that go together are in ``groups.py``.

An option states its heading in the help (``rich_help_panel``) unless it belongs on the first screen, and the value it has where
it is not given: from the tables, never by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.help import MACHINE, REMOVED, REPAIRED, TASKS, TEXT, default
from shoal.fit.fit_config import FEWEST_TOKENS, TOKENS_PER_INPUT
from shoal.measure.observers import observers_said
from shoal.recipes.table import RECIPES
from shoal.run.job import LONGEST_DEFAULT
from shoal.train.config import DEFAULT_TOKENS
from shoal.words.counts import parse_count

DEFAULT = RECIPES["default"].recipe

ModelOption = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder of a causal language model.")]
OutOption = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Run folder: new, empty, or of an earlier run, which is continued."),
]
DropOption = Annotated[
    str | None,
    typer.Option(
        "--drop",
        metavar="SHARE",
        help="25% of all parameters, 8 layers, 25%layers, 25%sublayers, 25%kv (cache), 25%macs, 25%latency (measured here); "
        "several with commas, such as 20%params,25%kv; net of replacements." + default(DEFAULT.drop),
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LIST",
        help="Take these out and choose nothing: 6, 4,6,20..24, -1 from the end, attn:5..8 or mlp:3 for single sublayers; "
        "none, where something else is done." + default("chosen"),
        rich_help_panel=REMOVED,
    ),
]
KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="LIST",
        help="Keep these layers, such as 0..15, and take out all others." + default("chosen"),
        rich_help_panel=REMOVED,
    ),
]
LengthOption = Annotated[
    int | None,
    typer.Option(
        "--length",
        metavar="N",
        help="Tokens per sample." + default(f"the model's window, at most {LONGEST_DEFAULT:,}"),
        rich_help_panel=TEXT,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Order of the text." + default(DEFAULT.seed), rich_help_panel=TEXT),
]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="SCORE",
        help="Score to select by, such as angular/last; for --select lowest also one of units: taylor_unit, left_out_kl."
        + default(DEFAULT.by),
        rich_help_panel=REMOVED,
    ),
]
ProtectOption = Annotated[
    str | None,
    typer.Option(
        "--protect",
        metavar="LAYERS",
        help="Layers that are not removed, such as 0,1,-1, or none; a replacement may still retrain one."
        + default(",".join(map(str, DEFAULT.protect))),
        rich_help_panel=REMOVED,
    ),
]
ObserveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--observe",
        metavar="NAME",
        help=f"Measure more of every span; may be repeated. {observers_said()}." + default("none"),
    ),
]
FitTokensOption = Annotated[
    int | None,
    typer.Option(
        "--fit-tokens",
        parser=parse_count,
        metavar="N",
        help="Tokens the repair reads."
        + default(f"{TOKENS_PER_INPUT} per input of the widest map, at least {FEWEST_TOKENS:,}"),
        rich_help_panel=REPAIRED,
    ),
]
TrainTokensOption = Annotated[
    int | None,
    typer.Option(
        "--train-tokens",
        parser=parse_count,
        metavar="N",
        help="Tokens of the training." + default(f"{DEFAULT_TOKENS:,}, or all that the text holds"),
        rich_help_panel=REPAIRED,
    ),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="TIME",
        help="Make the best of that much time, such as 10m: sets repair, candidates and tokens." + default("no limit"),
    ),
]
ItemsOption = Annotated[
    int | None,
    typer.Option("--items", metavar="N", help="The first items of every task." + default("all"), rich_help_panel=TASKS),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1.")]
RemoteOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model.", rich_help_panel=MACHINE)
]
NoSpeedOption = Annotated[
    bool,
    typer.Option(
        "--no-speed",
        help="Leave out how fast teacher and student run (else at most a tenth of the run's time).",
        rich_help_panel=MACHINE,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout; tables and progress on stderr.")]
