"""Options that stand alone in a signature; those that go together are in ``groups.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from shoal.cli.early import model_argument
from shoal.cli.help import MACHINE, REMOVED, REPAIRED, TASKS, TEXT
from shoal.cli.option import flag, listed, option
from shoal.fit.fit_config import FEWEST_TOKENS, TOKENS_PER_INPUT
from shoal.measure.observers import OBSERVERS
from shoal.recipes.table import RECIPES
from shoal.run.job import LONGEST_DEFAULT
from shoal.train.config import DEFAULT_TOKENS
from shoal.words.counts import parse_count
from shoal.words.durations import parse_time

DEFAULT = RECIPES["default"].recipe

ModelOption = Annotated[str, model_argument("MODEL", "Hub id, local folder or .gguf file of a causal language model.")]
OutOption = Annotated[Path, option("DIR", "Run folder: new, empty, or of an earlier run, which is continued.")]
DropOption = Annotated[
    str | None,
    option(
        "SHARE",
        "25% of all parameters, 8 layers, 25%layers, 25%sublayers, 2GB of weights, 20%active (of a mixture of experts), "
        "25%kv (cache), 25%macs, 25%latency (measured here); "
        "several with commas, such as 20%params,25%kv; net of replacements.",
        DEFAULT.drop,
    ),
]
LayersOption = Annotated[
    str | None,
    option(
        "LIST",
        "Take these out and choose nothing: 6, 4,6,20..24, -1 from the end, attn:5..8 or mlp:3 for single sublayers; "
        "none, where something else is done.",
        "chosen",
        under=REMOVED,
    ),
]
KeepOption = Annotated[
    str | None, option("LIST", "Keep these layers, such as 0..15, and take out all others.", "chosen", under=REMOVED)
]
LengthOption = Annotated[
    int | None, option("N", "Tokens per sample.", f"the model's window, at most {LONGEST_DEFAULT:,}", under=TEXT)
]
SeedOption = Annotated[int | None, option("N", "Order of the text.", DEFAULT.seed, under=TEXT)]
ByOption = Annotated[
    str | None,
    option(
        "SCORE",
        "Score to select by, such as angular/last; for --select lowest also one of units: taylor_unit, left_out_kl.",
        DEFAULT.by,
        under=REMOVED,
    ),
]
ProtectOption = Annotated[
    str | None,
    option(
        "LAYERS",
        "Layers that are not removed, such as 0,1,-1, or none; a replacement may still retrain one.",
        ",".join(map(str, DEFAULT.protect)),
        under=REMOVED,
    ),
]
ObserveOption = Annotated[
    list[str] | None, option("NAME", f"Measure more of every span; may be repeated. {listed(OBSERVERS)}", "none")
]
FitTokensOption = Annotated[
    int | None,
    option(
        "N",
        "Tokens the repair reads.",
        f"{TOKENS_PER_INPUT} per input of the widest map, at least {FEWEST_TOKENS:,}",
        under=REPAIRED,
        parser=parse_count,
    ),
]
TrainTokensOption = Annotated[
    int | None,
    option(
        "N", "Tokens of the training.", f"{DEFAULT_TOKENS:,}, or all that the text holds", under=REPAIRED, parser=parse_count
    ),
]
TimeOption = Annotated[
    float | None,
    option(
        "TIME",
        "Make the best of that much time, such as 10m: chooses repair, candidates, tokens and healing, but what is given.",
        "no limit",
        parser=parse_time,
    ),
]
ItemsOption = Annotated[int | None, option("N", "The first items of every task.", "all", under=TASKS)]
DeviceOption = Annotated[
    str, option("NAME", "cpu, cuda, cuda:1; cuda:0,1 or auto: layers on several cards, to measure and heal.")
]
RemoteOption = Annotated[bool, flag("--trust-remote-code", "Allow code that comes with the model.", under=MACHINE)]
NoSpeedOption = Annotated[
    bool,
    flag("--no-speed", "Leave out how fast teacher and student run (else at most a tenth of the run's time).", under=MACHINE),
]
JsonOption = Annotated[bool, flag("--json", "Result as JSON on stdout; tables and progress on stderr.")]
