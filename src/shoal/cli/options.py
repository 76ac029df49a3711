"""Options that stand alone in a signature; those that go together are in ``groups.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.measure.observers import observers_said

ModelOption = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder of a causal language model.")]
OutOption = Annotated[Path, typer.Option("--out", help="Run folder: new, empty, or of an earlier run, which is continued.")]
LengthOption = Annotated[
    int | None, typer.Option("--length", help="Tokens per sample.  [default: the model's window, at most 1024]")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Order of the text.  [default: 0]")]
DropOption = Annotated[
    str | None,
    typer.Option("--drop", help="25% of all parameters, 8 layers, or 25%layers; net of replacements.  [default: 25%]"),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LIST",
        help="Take these out and choose nothing: 6, 4,6,20..24, -1 from the end, attn:5..8 or mlp:3 for single sublayers.",
    ),
]
KeepOption = Annotated[
    str | None, typer.Option("--keep", metavar="LIST", help="Keep these layers, such as 0..15, and take out all others.")
]
ByOption = Annotated[str | None, typer.Option("--by", help="Score to select by, such as angular/last.  [default: cosine/rest]")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1.")]
RemoteOption = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout; tables and progress on stderr.")]
NoSpeedOption = Annotated[
    bool,
    typer.Option("--no-speed", help="Leave out how fast teacher and student run (else at most a tenth of the run's time)."),
]
ObserveOption = Annotated[
    list[str] | None,
    typer.Option("--observe", help=f"Measure more of every span; may be repeated. {observers_said()}."),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time",
        help="Make the best of that much time, such as 10m: sets repair, candidates and tokens; recipe.yaml records them.",
    ),
]
ProtectOption = Annotated[
    str | None,
    typer.Option(
        "--protect",
        help="Layers that are not removed, such as 0,1,-1, or none; a replacement may still retrain one.  [default: 0,-1]",
    ),
]
FitTokensOption = Annotated[
    int | None,
    typer.Option("--fit-tokens", help="Tokens the repair reads.  [default: 40 per input of the widest map, at least 48 k]"),
]
TrainTokensOption = Annotated[int | None, typer.Option("--train-tokens", help="Tokens of the training.  [default: up to 1 M]")]
ItemsOption = Annotated[int | None, typer.Option("--items", help="The first items of every task.  [default: all]")]
