"""What is compared: cells of models, ratios, units and ways to choose, the most telling ones first."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RATIOS = (12, 25, 40)
SPANS = {
    "span cosine/rest": ("span", "cosine/rest"),
    "span angular/last": ("span", "angular/last"),
    "disjoint angular/rest": ("disjoint", "angular/rest"),
    "lowest block_influence/rest": ("lowest", "block_influence/rest"),
    "deepest": ("deepest", "cosine/rest"),
}
SCORES = (
    "relative_update", "update_norm", "taylor_unit", "taylor_weights", "weight_l2", "left_out_kl", "left_out_ce",
    "left_out_lost_cka", "windowed_kl", "shapley_kl",
)  # fmt: skip
WAYS = (
    "span cosine/rest", "greedy kl", "lowest block_influence/rest", "deepest", "lowest left_out_kl", "greedy-refit kl",
    "lowest taylor_weights", "surrogate kl", "random", "lowest weight_l2", "lowest left_out_lost_cka", "greedy ce",
    "exhaustive", "one-shot kl", "lowest relative_update", "lowest taylor_unit", "span angular/last", "disjoint angular/rest",
    "lowest windowed_kl", "evolution kl", "policy-gradient kl", "beam kl", "greedy js", "lowest update_norm",
    "lowest left_out_ce", "lowest windowed_task", "lowest shapley_kl",
)  # fmt: skip
"""The most telling ones first: the default's proposer, the best search, what costs nothing, and what repairs on its way."""
UNITS = ("layers", "sublayers")


@dataclass(frozen=True)
class Cell:
    """One row of the tables."""

    model: str
    ratio: int
    units: str
    way: str

    @property
    def name(self) -> str:
        return f"{self.model} | {self.ratio} % | {self.units} | {self.way}"


def ways(units: str) -> list[str]:
    """Every way to choose such units; spans and the exhaustive search are of layers alone."""
    return [way for way in WAYS if units == "layers" or (way not in SPANS and way != "exhaustive")]


def cells(models: Sequence[str], options: argparse.Namespace) -> Iterator[Cell]:
    ratios = options.ratio or (25, 12, 40)
    for model in models:
        for units in options.units or UNITS:
            for ratio in ratios:
                here = [way for way in ways(units) if options.search_task or way != "lowest windowed_task"]
                yield from (Cell(model, ratio, units, way) for way in here)
            yield Cell(model, 0, units, "scores")
