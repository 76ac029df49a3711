"""The verb ``verify``: a file against its student, engine by engine."""

from pathlib import Path
from typing import Annotated

from shoal.cli.console import Screen
from shoal.cli.option import argument, option
from shoal.cli.options import JsonOption, RemoteOption
from shoal.cli.verb import verb
from shoal.export.engines.table import ENGINES


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
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Compare what engines make of a file with what transformers makes of the student it comes from.

    Same token ids into both: KL, same top token, greedy text, tokens of 25 awkward texts. The record is written beside FILE,
    and stands on the card and in the report of the student's run.
    """
    from shoal.export.prove import checked, engines_for, prove
    from shoal.run.proving import keep

    screen = Screen(as_json=json)
    file, against = checked(file), checked(against)
    fitting = engines_for(file)
    wanted = [ENGINES.named(name) for name in engine or ()] or fitting
    for one in wanted:
        if one not in fitting:
            raise ValueError(f"{one.name} reads no such thing as {file}; engines that do: {', '.join(e.name for e in fitting)}")
    with screen.working("run both in each engine"):
        proofs = list(prove(file, against, wanted, uncut=uncut, trust_remote_code=trust_remote_code))
    for proof in proofs:
        version = f" {proof.version}" if proof.version else ""
        screen.say(f"{proof.engine}{version}: {proof.verdict}")
        for what, found in (("", proof.found), ("uncut: ", proof.uncut)):
            if found is not None:
                screen.say(f"  {what}{found}")
    written = keep(file, against, proofs) if any(proof.version for proof in proofs) else []
    screen.say(f"record:     {', '.join(map(str, written)) or 'none, nothing was run'}")
    screen.result(
        {
            "file": str(file),
            "proofs": [proof.model_dump(mode="json") for proof in proofs],
            "written": [str(one) for one in written],
        }
    )
    wrong = [proof for proof in proofs if proof.is_wrong]
    if wrong:
        why = wrong[0].verdict.removeprefix("differs: ")
        raise ValueError(f"{file} is not {against} in {wrong[0].engine}: {why}{_rounding_counts(file, against)}")
    missing = [proof.engine for proof in proofs if proof.version is None]
    if engine and missing:
        raise ValueError(f"not proved in {missing[0]}, which is not installed; {ENGINES[missing[0]].install} installs it")


def _rounding_counts(file: Path, against: Path) -> str:
    """That a quantised file was compared with values that were not rounded, and how to leave that out; else empty."""
    from shoal.export.prove import is_exact

    if file == against or is_exact(file) or not is_exact(against):
        return ""
    return f"; the rounding of its blocks counts here, --against {file} leaves it out: the file, unpacked, is compared then"
