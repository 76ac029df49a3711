"""Which candidates the guard looks at: the choice that was asked for, the best of other criteria, and one that is different.

Criteria that look at the same stream tend to agree, and err together: a layer whose small change the head reads with a large
gain is cheap to all of them. So one place is kept for the best choice that shares at most half of its layers with the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate
from shoal.select.request import PATCHED, Picked, Tables, Wanted
from shoal.select.span import plain_span_by
from shoal.select.table import SELECTORS

# In this order; entries whose table was not scanned are left out.
OTHERS = (
    ("span", "cosine/rest"),
    ("lowest", "block_influence/rest"),
    ("span", "angular/last"),
    ("disjoint", "angular/rest"),
    ("span", "cosine/every"),
    ("span", "angular/rest"),
    ("lowest", "block_influence/every"),
    ("span", "relative_magnitude/rest"),
    ("span", "euclidean/rest"),
)
MOST_RUNNERS_UP = 24  # looked at per criterion for one that differs


@dataclass
class Proposer:
    """A criterion: its name and its choices from best to worst."""

    name: str
    picks: Iterator[Picked]


@dataclass
class _Proposal:
    layers: tuple[int, ...]
    scores: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def add(self, name: str, picked: Picked) -> None:
        self.names.append(name)
        if picked.score is not None:
            self.scores[name] = picked.score


def other_proposers(tables: Tables, wanted: Wanted) -> list[Proposer]:
    """The house's criteria on the tables at hand, as far as a replacement allows.

    Layers in several spans need a module for each. Where these are layers of the family that costs no size; other modules cost
    parameters each, so there one span is looked for.
    """
    found: list[Proposer] = []
    if PATCHED in tables:
        found.append(Proposer(f"span {PATCHED}", plain_span_by(tables, replace(wanted, by=PATCHED))))
    for selector, by in OTHERS:
        one_span = wanted.put_back.name != "none" and not wanted.put_back.inherits
        if by not in tables or (one_span and not SELECTORS[selector].is_contiguous):
            continue
        asked = replace(wanted, by=by)
        found.append(Proposer(f"{selector} {by}", SELECTORS[selector].pick(tables, asked)))
        if wanted.put_back.inherits and wanted.put_back.scores_inherited and selector == "span":
            found.append(Proposer(f"plain span {by}", plain_span_by(tables, asked)))
    found.append(Proposer("deepest", SELECTORS["deepest"].pick(tables, wanted)))
    return found


def propose(proposers: Sequence[Proposer], n_candidates: int) -> tuple[Candidate, ...]:
    """Up to ``n_candidates`` different sets of layers, in order of proposal; the first proposer's best comes first.

    Returns: candidates that are not yet measured; fewer where there are no more.
    Raises: ValueError: the first proposer finds nothing.
    """
    bests: dict[tuple[int, ...], _Proposal] = {}
    for rank, proposer in enumerate(proposers):
        if rank and n_candidates == 1:
            break
        picked = next(proposer.picks, None)
        if picked is None:
            if rank == 0:
                raise ValueError(f"{proposer.name!r} finds no layers that can go; protect fewer layers or remove fewer")
            continue
        bests.setdefault(picked.layers, _Proposal(picked.layers)).add(proposer.name, picked)
    chosen = list(bests.values())[: max(1, n_candidates - 1)]
    if n_candidates > 1:
        pool = {layers: one for layers, one in bests.items() if one not in chosen}
        _add_different(chosen, pool, proposers)
        for one in [*pool.values(), *_runners_up(proposers, {one.layers for one in chosen} | set(pool))]:
            if len(chosen) >= n_candidates:
                break
            if all(one.layers != other.layers for other in chosen):
                chosen.append(one)
    return tuple(
        Candidate(edits=(Drop(indices=one.layers),), proposed_by=tuple(one.names), scores=one.scores) for one in chosen
    )


def _add_different(chosen: list[_Proposal], pool: dict[tuple[int, ...], _Proposal], proposers: Sequence[Proposer]) -> None:
    """Append the first choice that shares at most half of its layers with each chosen one; runners-up seen join the pool."""
    runners = _runners_up(proposers, {one.layers for one in chosen} | set(pool))
    for one in [*pool.values()]:
        if _differs(one, chosen):
            chosen.append(one)
            return
    for one in runners:
        if _differs(one, chosen):
            chosen.append(one)
            return
        pool[one.layers] = one


def _differs(one: _Proposal, chosen: Sequence[_Proposal]) -> bool:
    return all(2 * len(set(one.layers) & set(other.layers)) <= len(one.layers) for other in chosen)


def _runners_up(proposers: Sequence[Proposer], known: set[tuple[int, ...]]) -> Iterator[_Proposal]:
    """Second choices of all proposers in turn, then third ones, ...; each set of layers once."""
    seen = set(known)
    live = [(proposer.name, islice(proposer.picks, MOST_RUNNERS_UP)) for proposer in proposers]
    while live:
        still = []
        for name, picks in live:
            picked = next(picks, None)
            if picked is None:
                continue
            still.append((name, picks))
            if picked.layers not in seen:
                seen.add(picked.layers)
                runner = _Proposal(picked.layers)
                runner.add(f"runner-up {name}", picked)
                yield runner
        live = still
