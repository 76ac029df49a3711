"""The tables of benchmarks/choose.py as Markdown, from its file of results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

FIRST = "span cosine/rest"
"""The choice of the default where no tournament is held."""


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; equal values share their mean rank. NaN where all are equal."""

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(values)
        return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]

    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return statistics.correlation(ranks(a), ranks(b))


def summary(rows: dict[tuple[str, ...], dict[str, Any]]) -> Iterator[str]:
    """Every way over all models, ratios and units that it was measured on: its KL over the best of the same group.

    A group is a model at a ratio; where all sets could be run, the choice is held against the best of them, too.
    """
    groups = {key[:3] for key in rows if key[3] != "scores"}
    over: dict[tuple[str, str], list[tuple[float, float]]] = {}
    optimal: dict[tuple[str, str], list[float]] = {}
    for group in groups:
        here = {key[3]: one for key, one in rows.items() if key[:3] == group and "kl_repaired" in one}
        best = [min(one[key] for one in here.values()) for key in ("kl", "kl_repaired")]
        for way, one in here.items():
            over.setdefault((group[2], way), []).append((one["kl"] / best[0], one["kl_repaired"] / best[1]))
            if "exhaustive" in here:
                least = here["exhaustive"]["losses"][0]
                optimal.setdefault((group[2], way), []).append(one["kl_searched"] / least)
    for units in ("layers", "sublayers"):
        yield f"\n### {units}: KL over the lowest of the same model and ratio, geometric means\n"
        yield "| way | groups | searched, over the optimum of all sets | plain | repaired | best after repair in |"
        yield "|---|---|---|---|---|---|"
        here = {way: found for (kind, way), found in over.items() if kind == units}
        for way, found in sorted(here.items(), key=lambda item: _mean(item[1], 1)):
            n_best = sum(repaired < 1 + 1e-9 for _, repaired in found)
            known = optimal.get((units, way), [])
            from_optimum = f"{statistics.geometric_mean(known):.2f} (of {len(known)})" if known else ""
            means = f"{_mean(found, 0):.2f} | {_mean(found, 1):.3f}"
            yield f"| {way} | {len(found)} | {from_optimum} | {means} | {n_best} |"


def pairs(rows: dict[tuple[str, ...], dict[str, Any]]) -> Iterator[str]:
    """What a second candidate is worth beside the first of the house: the better of both after repair, over the first alone.

    Of all groups, and of those of each model: a way may lack groups, and small models are not large ones.
    """
    of_first = {key[:3]: one["kl_repaired"] for key, one in rows.items() if key[3] == FIRST and "kl_repaired" in one}
    models = list(dict.fromkeys(group[0] for group in of_first))
    worth: dict[str, dict[str, list[float]]] = {}
    for key, one in rows.items():
        if key[:3] in of_first and key[3] not in (FIRST, "random", "exhaustive") and "kl_repaired" in one:
            of_models = worth.setdefault(key[3], {})
            of_models.setdefault(key[0], []).append(min(1.0, one["kl_repaired"] / of_first[key[:3]]))
    yield f"\n### The better of `{FIRST}` and a second candidate, repaired, over the first alone\n"
    yield f"| second candidate | groups | geometric mean | better than the first in | {' | '.join(models)} |"
    yield "|---|---|---|---|" + "---|" * len(models)
    whole = {way: [one for found in of_models.values() for one in found] for way, of_models in worth.items()}
    for way, found in sorted(whole.items(), key=lambda item: statistics.geometric_mean(item[1])):
        n_better = sum(one < 1 - 1e-9 for one in found)
        each = [f"{statistics.geometric_mean(worth[way][model]):.3f}" if model in worth[way] else "" for model in models]
        yield f"| {way} | {len(found)} | {statistics.geometric_mean(found):.3f} | {n_better} | {' | '.join(each)} |"


def _mean(found: Sequence[tuple[float, float]], which: int) -> float:
    return statistics.geometric_mean([one[which] for one in found])


def tables(results: dict[str, Any]) -> Iterator[str]:
    """Markdown: one table for each model, ratio and kind of unit; distances from the optimum; correlations; winners."""
    rows = {tuple(name.split(" | ")): one for name, one in results["cells"].items() if one}
    yield from summary(rows)
    yield from pairs(rows)
    for model in dict.fromkeys(key[0] for key in rows):
        for ratio, units in dict.fromkeys(key[1:3] for key in rows if key[0] == model and key[3] != "scores"):
            here = {key[3]: one for key, one in rows.items() if key[:3] == (model, ratio, units)}
            yield from _choices(f"{model}, {ratio}, {units}", here)
        yield from _correlations(model, {key[2]: one for key, one in rows.items() if key[0] == model and key[3] == "scores"})


def _choices(title: str, here: dict[str, dict[str, Any]]) -> Iterator[str]:
    best = here.get("exhaustive")
    parameters = next(iter(here.values()))["removed"]["parameters"]
    yield f"\n### {title} ({parameters:.1%} of all parameters)\n"
    tasks = list(dict.fromkeys(name for one in here.values() for name in one.get("tasks", ())))
    head = "".join(f" {name}, plain to repaired |" for name in tasks)
    yield f"| way | sets run | seconds | KL searched | rank of all sets | KL plain | KL repaired |{head} what goes |"
    yield "|---|---|---|---|---|---|---|---|" + "---|" * len(tasks)
    for way, one in sorted(here.items(), key=lambda item: item[1]["kl_repaired"]):
        rank = "" if best is None or way == "random" else _rank(one["kl_searched"], best["losses"])
        error = f" ± {one['kl_repaired_stderr']:.3f}" if "kl_repaired_stderr" in one else ""
        goes = " ".join(one.get("units", ["(mean of draws)"])).replace("layer.", "")
        kls = f"{one['kl_searched']:.3f} | {rank} | {one['kl']:.3f} | {one['kl_repaired']:.3f}{error}"
        answers = "".join(f"{_answers(one, name)} | " for name in tasks)
        yield f"| {way} | {one['sets']} | {one['seconds']:.1f} | {kls} | {answers}{goes} |"
    chosen = {way: one for way, one in here.items() if way != "random"}
    plain, repaired = (min(chosen, key=lambda way: chosen[way][key]) for key in ("kl", "kl_repaired"))
    differs = chosen[plain]["kl_repaired"] > chosen[repaired]["kl_repaired"]
    different = {" ".join(one["units"]): one for one in chosen.values()}.values()
    both = [[one[key] for one in different] for key in ("kl", "kl_repaired")]
    said = f"another one: plain {plain}, repaired {repaired}" if differs else f"the same: {repaired}"
    over = f" over {len(different)} different sets"
    correlation = f"; rank correlation of plain and repaired KL {spearman(*both):.2f}{over}" if len(different) > 2 else ""
    yield f"\nBest before and after the repair: {said}{correlation}."


def _answers(one: dict[str, Any], task: str) -> str:
    """Accuracies of a set; of random sets their mean."""
    rows = [row["tasks"][task] for row in one.get("draws", [one]) if task in row.get("tasks", ())]
    return " to ".join(f"{statistics.fmean(each):.0%}" for each in zip(*rows, strict=True))


def _rank(loss: float, losses: Sequence[float]) -> str:
    place = 1 + sum(other < loss - 1e-9 for other in losses)
    return f"{place} of {len(losses)}"


def _correlations(model: str, found: dict[str, dict[str, Any]]) -> Iterator[str]:
    for units, one in found.items():
        yield f"\n### {model}, scores of {one['n_units']} {units} against the KL they cost\n"
        yield "| score | alone | in random sets of a quarter |"
        yield "|---|---|---|"
        for by, row in sorted(one["correlation"].items(), key=lambda item: -item[1]["in sets"]):
            yield f"| `{by}` | {row['alone']:.2f} | {row['in sets']:.2f} |"
