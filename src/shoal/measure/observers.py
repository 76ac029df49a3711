"""Observers that a scan can be asked for beside its own, by name. A new one is a file and a line in ``OBSERVERS``.

An entry says everything that others need to know of it: recipe, help, refusals, planner and documents read this table. It is
plain data, free of torch: an observer's own file is imported when it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.words.entries import Entries, by_name

if TYPE_CHECKING:
    from shoal.measure.scan import TableObserver


@dataclass(frozen=True)
class ScanFacts:
    """What an observer may depend on: depth and width of the model, tokens of the longest sample, the recipe's seed."""

    n_layers: int
    hidden_size: int
    length: int
    seed: int


@dataclass(frozen=True)
class NamedObserver:
    """An entry of the table.

    Attributes:
        about: what it measures, in one line.
        tables: names of the tables it adds to the scan, as ``criterion/tokens``.
        build: a new observer.
        n_bytes: most memory that it takes beside the states it is given.
    """

    name: str
    about: str
    tables: tuple[str, ...]
    build: Callable[[ScanFacts], TableObserver]
    n_bytes: Callable[[ScanFacts], int]


def _cka(facts: ScanFacts) -> TableObserver:
    from shoal.measure.cka import CkaObserver

    return CkaObserver(facts.n_layers, length=facts.length, seed=facts.seed)


def _cka_bytes(facts: ScanFacts) -> int:
    """Of one sample: fp32 features of 64 tokens, twice (one of them centred), and their fp64 kernels, at every boundary."""
    return (facts.n_layers + 1) * 64 * (2 * 4 * facts.hidden_size + 2 * 8 * 64)


OBSERVERS: Entries[NamedObserver] = by_name(
    "observer",
    NamedObserver("cka", "debiased linear CKA of every pair of boundaries", ("cka/rest",), _cka, _cka_bytes),
)
