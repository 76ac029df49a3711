"""Tables of ``smollm2.py`` as Markdown, from its file of results; a table whose cells are not measured yet is left out."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

Results = dict[str, Any]
DOMAINS = ("other", "wiki")


def tables(results: Results) -> str:
    """All of them, an empty line between two."""
    made = (plain_cuts, commands, repaired, seeds, rounds, corpora, instructions, tasks, stability, every_item, speed)
    return "\n\n".join("\n".join(lines) for one in made for lines in one(results) if lines)


def plain_cuts(results: Results) -> list[list[str]]:
    found = []
    for share, by_domain in _shares(results, "plain"):
        notes = {name: layers_said(layers) for name, layers in results["criteria"][share].items()}
        found.append([f"Plain cuts, {share} of the layers:", "", *_losses(by_domain, notes)])
    return found


def commands(results: Results) -> list[list[str]]:
    rows = []
    for share, way in itertools.product((" 10 %", "", " 40 %", " 50 %"), ("low", "closed forms", "default")):
        if one := results.get(f"command {way}{share}"):
            kl = " | ".join(_kl(one[domain]["rows"][way]) for domain in DOMAINS)
            removed = sorted(layer for edit in one["edits"] if edit["kind"] == "layer" for layer in edit["indices"])
            rows.append(f"| {way} | {layers_said(removed)} | {one['seconds'] / 60:.1f} | {kl} |")
    for name, one in results.items():
        if ", healed, " in name:
            way, kl = (
                name.split(",")[0].removeprefix("command "),
                " | ".join(_kl(one[domain]["rows"]["healed"]) for domain in DOMAINS),
            )
            how = f"{way}, then LoRA on logits, {one['n_tokens']:,} tokens in {one['n_steps']} steps"
            rows.append(f"| {how} | the same as of {way} | | {kl} |")
    head = ["| way | removed | minutes, start to report | KL, other books | KL, WikiText |", "|---|---|---:|---:|---:|"]
    return [head + rows] if rows else []


def repaired(results: Results) -> list[list[str]]:
    found = []
    for share, by_domain in _shares(results, "repaired"):
        made = {name: results[f"fit {name} {share}"] for name in by_domain["other"]["rows"] if name != "teacher"}
        notes = {name: f"{layers_said(one['layers'])}; {one['seconds'] / 60:.1f} min" for name, one in made.items()}
        tokens = next(iter(made.values()))["tokens"]
        found.append([f"{share} of the layers, {tokens:,} tokens to repair:", "", *_losses(by_domain, notes)])
    return found


def seeds(results: Results) -> list[list[str]]:
    by_domain = {domain: results.get(f"seeds {domain}") for domain in DOMAINS}
    if not all(by_domain.values()):
        return []
    return [["Other text to scan and to fit (ours, refit, 25 %):", "", *_losses(by_domain, {})]]


def rounds(results: Results) -> list[list[str]]:
    rows = []
    for n in (1, 3, 7):
        if one := results.get(f"rounds {n}"):
            rows.append(f"| {n} | {layers_said(one['layers'])} | {_kl(one['rows']['student'])} |")
    return [["| rounds | layers | KL, other books |", "|---:|---|---:|", *rows]] if rows else []


def corpora(results: Results) -> list[list[str]]:
    """Perplexity after each span of seven layers is out, by corpus."""
    asked = {name: results.get(f"by perplexity {name}") for name in ("books", "other", "wiki")}
    found = {name: one for name, one in asked.items() if one is not None}
    if not found:
        return []
    lines = ["| span | " + " | ".join(f"perplexity, {name}" for name in found) + " |", "|---|" + "---:|" * len(found)]
    for at, start in enumerate(next(iter(found.values()))["starts"]):
        cells = " | ".join(f"{math.exp(one['nll'][at]):.4g}" for one in found.values())
        lines.append(f"| {start}..{start + len(results['criteria']['25 %']['cosine (LLM-Streamline)']) - 1} | {cells} |")
    return [lines]


def instructions(results: Results) -> list[list[str]]:
    asked = {label: one for label, one in results.items() if label.startswith("instructions ")}
    if not asked:
        return []
    lines = [f"| | right of {next(iter(asked.values()))['items']} |", "|---|---:|"]
    return [lines + [f"| {label.removeprefix('instructions ')} | {sum(one['right'])} |" for label, one in asked.items()]]


def tasks(results: Results) -> list[list[str]]:
    """Share of the items right, with the standard error of the difference to the teacher over paired items."""
    asked = _tasks(results) | {name: one for name, one in results.items() if name == "arithmetic"}
    if not asked:
        return []
    labels = list(next(iter(asked.values()))["right"])
    lines = ["| task (items) | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
    for name, one in asked.items():
        lines.append(f"| {name} ({one['items']}) | " + " | ".join(_shares_right(one)) + " |")
    return [lines]


def _shares_right(one: dict[str, Any]) -> list[str]:
    """Per cent of the items of a cell, student by student, with the standard error of the paired difference to the teacher."""
    cells, teacher = [], one["right"]["teacher"]
    digits = 1 if one["items"] >= 1000 else 0
    for label, right in one["right"].items():
        differences = [a - b for a, b in zip(right, teacher, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        share = f"{100 * statistics.mean(right):.{digits}f}"
        cells.append(share if label == "teacher" else f"{share} ± {100 * error:.{digits}f}")
    return cells


def stability(results: Results) -> list[list[str]]:
    asked = _tasks(results)
    if not asked:
        return []
    labels = [label for label in next(iter(asked.values()))["stability"] if label != "teacher"]
    lines = ["| stability | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
    for name, one in asked.items():
        kept = [one["stability"][label] for label in labels]
        lines.append(
            f"| {name} | " + " | ".join(f"{at['value']:.2f} ({at['low']:.2f} to {at['high']:.2f})" for at in kept) + " |"
        )
    return [lines]


def every_item(results: Results) -> list[list[str]]:
    """All items of the tasks: share that is right, the error of its difference to the teacher, and stability."""
    asked = {name.removeprefix("all items, "): one for name, one in results.items() if name.startswith("all items, ")}
    if not asked:
        return []
    labels = list(next(iter(asked.values()))["right"])
    lines = ["| task (all items) | " + " | ".join(labels) + " | stability: plain cut | stability: default |"]
    lines.append("|---|" + "---:|" * (len(labels) + 2))
    for name, one in asked.items():
        kept = [one["stability"][label] for label in ("plain cut", "default")]
        cells = [*_shares_right(one), *(f"{at['value']:.3f} ({at['low']:.2f} to {at['high']:.2f})" for at in kept)]
        lines.append(f"| {name} ({one['items']:,}) | " + " | ".join(cells) + " |")
    return [lines]


def speed(results: Results) -> list[list[str]]:
    if "speed" not in results:
        return []
    found = results["speed"]
    teacher = found["rows"]["teacher"]
    lines = ["| | layers | prompt, tokens/s | decode, tokens/s | decode, of the teacher's |", "|---|---:|---:|---:|---:|"]
    for label, one in found["rows"].items():
        prefill, decode = (statistics.median(one[phase]) for phase in ("prefill", "decode"))
        ratio = statistics.median(a / b for a, b in zip(one["decode"], teacher["decode"], strict=True))
        lines.append(f"| {label} | {found['layers'][label]} | {prefill:.0f} | {decode:.1f} | {ratio:.2f} |")
    return [lines]


def layers_said(layers: Sequence[int]) -> str:
    from shoal.words.structure import runs_said

    return f"layers {runs_said(layers)}"


def _shares(results: Results, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Shares of which both domains are measured."""
    found = []
    for share in ("10 %", "25 %", "40 %", "50 %"):
        by_domain = {domain: results.get(f"{kind} {share} {domain}") for domain in DOMAINS}
        if all(by_domain.values()):
            found.append((share, by_domain))
    return found


def _tasks(results: Results) -> dict[str, Any]:
    return {label.removeprefix("task "): one for label, one in results.items() if label.startswith("task ")}


def _kl(row: dict[str, Any]) -> str:
    return f"{row['kl']:.3f} ± {row['kl_stderr']:.3f}"


def _losses(by_domain: dict[str, Any], notes: dict[str, str]) -> list[str]:
    lines = [
        "| | | KL, other books | KL, WikiText | perplexity, other books | perplexity, WikiText |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in next(iter(by_domain.values()))["rows"]:
        found = [by_domain[domain]["rows"][name] for domain in DOMAINS]
        perplexity = " | ".join(f"{one['perplexity']:.4g}" for one in found)
        lines.append(f"| {name} | {notes.get(name, '')} | {' | '.join(map(_kl, found))} | {perplexity} |")
    return lines
