"""The results of ``repair.py`` as tables for the documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Cells = dict[tuple[Any, ...], dict[str, Any]]


def tables(content: dict[str, Any], rows: Sequence[str]) -> str:
    """One table per cut of part ``same plan``, one of ``own plan``, one of the spread over seeds."""
    cells: Cells = {tuple(cell["key"]): cell for cell in content["cells"] if "absent" not in cell}
    cuts = sorted({(key[0], key[1]) for key in cells if key[2] == "same plan"}, key=lambda cut: (-_depth(cells, cut), cut[1]))
    blocks = [_same_plan(cells, model, n, rows) for model, n in cuts]
    blocks += [_overview(cells, cuts, rows)]
    blocks += [_own_plan(cells, rows), _seeds(cells, rows)]
    return "\n\n".join(block for block in blocks if block)


def _depth(cells: Cells, cut: tuple[str, int]) -> int:
    return max(cell["n_layers"] for key, cell in cells.items() if key[:2] == cut)


def _same_plan(cells: Cells, model: str, n: int, rows: Sequence[str]) -> str:
    found = {row: cells[key] for row in rows if (key := (model, n, "same plan", row, 0)) in cells}
    start, stop = next(iter(found.values()))["layers"]
    depth = next(iter(found.values()))["n_layers"]
    plain = found.get("none")
    lines = [
        f"{model}, layers {start}..{stop - 1} of {depth} removed",
        "",
        "| repair | KL | of none | perplexity | KL, other domain | new parameters | tokens fitted + trained | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row, cell in found.items():
        share = f"{cell['own']['kl'] / plain['own']['kl']:.2f}" if plain else ""
        lines.append(
            f"| {row} | {cell['own']['kl']:.4f} ± {cell['own']['kl_stderr']:.4f} | {share} | {cell['own']['perplexity']:.1f} "
            f"| {cell['other']['kl']:.4f} | {cell['new_parameters']:,} "
            f"| {cell['fit_tokens']:,} + {cell['train_tokens']:,} | {cell['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _overview(cells: Cells, cuts: Sequence[tuple[str, int]], rows: Sequence[str]) -> str:
    """KL as a share of the plain cut's, all cuts side by side."""
    shown = [row for row in rows if sum((*cut, "same plan", row, 0) in cells for cut in cuts) > 1]
    if not shown:
        return ""
    names = [f"{model} -{n}" for model, n in cuts]
    lines = ["KL over that of the plain cut", "", f"| repair | {' | '.join(names)} |", "|---|" + "---:|" * len(cuts)]
    for row in shown:
        shares = []
        for cut in cuts:
            one, plain = (cells.get((*cut, "same plan", name, 0)) for name in (row, "none"))
            shares.append(f"{one['own']['kl'] / plain['own']['kl']:.2f}" if one and plain else "")
        lines.append(f"| {row} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _own_plan(cells: Cells, rows: Sequence[str]) -> str:
    found = [(key, cell) for key, cell in cells.items() if key[2] == "own plan"]
    if not found:
        return ""
    lines = ["Each method's own best of three spans", "", "| model | repair | layers | KL | KL, other domain |"]
    lines.append("|---|---|---|---:|---:|")
    for key, cell in sorted(found, key=lambda pair: (pair[0][0], rows.index(pair[0][3]) if pair[0][3] in rows else -1)):
        start, stop = cell["layers"]
        kl, other = cell["own"]["kl"], cell["other"]["kl"]
        lines.append(f"| {key[0]} | {key[3]} | {start}..{stop - 1} | {kl:.4f} | {other:.4f} |")
    return "\n".join(lines)


def _seeds(cells: Cells, rows: Sequence[str]) -> str:
    """Mean and spread over the texts of the fit: seed 0 is the row of the same plan."""
    cuts = sorted({key[:2] for key in cells if key[2] == "seeds"})
    lines = ["Other text for the fit", "", "| model | repair | texts | KL, mean | standard deviation | worst over none |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for cut in cuts:
        for row in rows:
            seeds = [key[4] for key in cells if key[:2] == cut and key[2] == "seeds" and key[3] == row]
            keys = [(*cut, "same plan", row, 0), *((*cut, "seeds", row, seed) for seed in seeds)]
            kl = [cells[key]["own"]["kl"] for key in keys if key in cells]
            plain = cells.get((*cut, "same plan", "none", 0))
            if len(kl) < 2 or plain is None:
                continue
            mean = sum(kl) / len(kl)
            spread = math.sqrt(sum((one - mean) ** 2 for one in kl) / (len(kl) - 1))
            lines.append(
                f"| {cut[0]} -{cut[1]} | {row} | {len(kl)} | {mean:.4f} | {spread:.4f} | {max(kl) / plain['own']['kl']:.2f} |"
            )
    return "\n".join(lines) if cuts else ""
