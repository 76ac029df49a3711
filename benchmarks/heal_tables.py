"""The tables of benchmarks/heal.py as Markdown, from its file of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SAID = {"kd": "logits", "text": "text", "hidden": "hidden states"}


def tables(results: dict[str, Any], model: str) -> Iterator[str]:
    """A table for each start and number of tokens, best method first; the starts are in all of them."""
    found = dict(results["cells"])
    starts = found.pop("starts")
    domains = list(starts["teacher"])
    keys = {name: name.split(":") for name in found}
    groups = dict.fromkeys((start, int(tokens)) for _, _, start, tokens in sorted(keys.values(), key=lambda key: int(key[3])))
    for start, tokens in groups:
        rows = {name: found[name] for name, key in keys.items() if key[2:] == [start, str(tokens)]}
        yield f"\n{model}, {results['drop']} layers out, from the {start} cut, {tokens:,} tokens:\n"
        yield "| method | for | rate | " + " | ".join(f"KL, {d} | perplexity, {d} | repaired" for d in domains) + " | s | MB |"
        yield "|---|---|---:|" + "---:|---:|---:|" * len(domains) + "---:|---:|"
        for what in ("teacher", *(["plain"] if start == "repaired" else []), start):
            base = [(one["kl"], one["perplexity"], 1 - one["kl"] / starts["plain"][d]["kl"]) for d, one in starts[what].items()]
            name = {"teacher": "teacher", "plain": "plain cut", "repaired": "cut and repair"}[what]
            yield f"| {name} | | | {_figures(base)} | | |"
        for name, row in sorted(rows.items(), key=lambda item: item[1]["domains"][domains[0]]["kl"]):
            method, objective, _, _ = keys[name]
            figures = [(one["kl"], one["perplexity"], one["repaired"]) for one in row["domains"].values()]
            costs = f"{row['seconds']:.0f} | {row['peak_bytes'] / 1e6:,.0f}"
            yield f"| {method} | {SAID[objective]} | {row['lr']:.1e} | {_figures(figures)} | {costs} |"


def _figures(rows: Sequence[tuple[float, float, float]]) -> str:
    return " | ".join(f"{kl:.4f} | {perplexity:.1f} | {repaired:.0%}".replace("%", " %") for kl, perplexity, repaired in rows)


def write_between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between the page's marks ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Raises:
        SystemExit: the page has no such marks.
    """
    text, marks = page.read_text(), (f"<!-- {name} -->", f"<!-- end of {name} -->")
    if not all(mark in text for mark in marks):
        raise SystemExit(f"{page} needs the two lines {marks[0]} and {marks[1]}; the tables go between them")
    before, rest = text.split(marks[0], 1)
    after = rest.split(marks[1], 1)[1]
    page.write_text(f"{before}{marks[0]}\n" + "\n".join(lines).strip() + f"\n{marks[1]}{after}")
