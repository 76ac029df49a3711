"""What engines made of a student's files, as a table for the report and for the model card."""

from collections.abc import Sequence

from shoal.export.engines.table import ENGINES
from shoal.export.proof_record import ProofRecord
from shoal.show.markdown import table
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import percent, short

HEADING = "## Proved in engines"
HOW = (
    "The same token ids went into the engine and into transformers; KL in nats, greedy text until the first difference. A file "
    "that is quantised is judged against the uncut file in the same blocks."
)


def engine_table(records: Sequence[ProofRecord]) -> Table:
    """One row per file and engine; the notes say what was not proved."""
    columns = (
        *map(Column, ("file", "engine", "version", "verdict")), *numbers("KL", "KL of the uncut file", form=short),
        *numbers("same top token, %", form=percent), *map(Column, ("greedy tokens", "texts tokenised alike")),
    )  # fmt: skip
    rows = []
    for one in records:
        for proof in one.engines.values():
            found = proof.found
            figures: tuple[object, ...] = (None,) * 5
            if found is not None:
                figures = (
                    found.kl,
                    None if proof.uncut is None else proof.uncut.kl,
                    found.same_top,
                    f"{found.n_same_greedy} of {found.n_greedy}",
                    None if found.n_texts is None else f"{found.n_same_texts} of {found.n_texts}",
                )
            rows.append((one.file, proof.engine, proof.version, proof.verdict, *figures))
    return Table("Files of this student in engines", columns, tuple(rows), notes=(HOW, *_missing(records)))


def _missing(records: Sequence[ProofRecord]) -> list[str]:
    proved = {name for one in records for name in one.engines}
    missing = [name for name in ENGINES if name not in proved]
    if not missing:
        return []
    said = f"Not proved here: {', '.join(missing)}. shoal verify FILE --against MODEL --engine {missing[0]} would"
    return [f"{said}; {ENGINES[missing[0]].install} installs it."]


def with_engines(card: str, records: Sequence[ProofRecord]) -> str:
    """A model card with the section about engines: renewed where it stands, else behind all others."""
    before, found, rest = card.partition(f"\n{HEADING}\n")
    behind = ""
    if found:
        _, next_heading, behind = rest.partition("\n## ")
        behind = next_heading + behind
    section = f"\n{HEADING}\n\n{table(engine_table(records))}\n" if records else ""
    return before.rstrip("\n") + "\n" + section + behind
