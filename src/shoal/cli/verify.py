"""The verb ``verify``: a file against its student, engine by engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from shoal.cli.console import Screen
from shoal.cli.option import argument, option
from shoal.cli.options import JsonOption
from shoal.cli.verb import verb
from shoal.export.engines.table import ENGINES, engine_named


@verb
def verify(
    file: Annotated[Path, argument("FILE", "GGUF file, or the folder of a checkpoint.")],
    against: Annotated[Path, option("PATH", "Checkpoint folder or GGUF file it must be the same as.")],
    engine: Annotated[
        list[str] | None, option("NAME", f"One of {', '.join(ENGINES)}; may be repeated.", "all that are installed")
    ] = None,
    uncut: Annotated[
        Path | None,
        option("TEACHER.gguf", "Uncut file in the same blocks: the noise of a quantised format.", "none"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare what engines make of a file with what transformers makes of the student it comes from.

    Same token ids into both: KL, same top token, greedy text, tokens of 25 awkward texts. The record is written beside FILE.
    """
    from shoal.export.prove import engines_for, prove, record

    screen = Screen(as_json=json)
    fitting = engines_for(file)
    wanted = [engine_named(name) for name in engine or ()] or fitting
    for one in wanted:
        if one not in fitting:
            raise ValueError(f"{one.name} reads no such thing as {file}; engines that do: {', '.join(e.name for e in fitting)}")
    with screen.working("run both in each engine"):
        proofs = prove(file, against, wanted, uncut=uncut)
    for proof in proofs:
        version = f" {proof.version}" if proof.version else ""
        screen.say(f"{proof.engine}{version}: {proof.verdict}")
        for what, found in (("", proof.found), ("uncut: ", proof.floor)):
            if found is not None:
                screen.say(f"  {what}{found}")
    written = record(file, against, proofs) if any(proof.version for proof in proofs) else None
    screen.say(f"record:     {written or 'none, nothing was run'}")
    screen.result({"file": str(file), "proofs": [proof.to_dict() for proof in proofs]})
    wrong = [proof for proof in proofs if proof.is_wrong]
    if wrong:
        raise ValueError(f"{file} is not {against} in {wrong[0].engine}: {wrong[0].verdict.removeprefix('differs: ')}")
    missing = [proof.engine for proof in proofs if proof.version is None]
    if engine and missing:
        raise ValueError(f"not proved in {missing[0]}, which is not installed; {ENGINES[missing[0]].install}")
