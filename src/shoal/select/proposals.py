"""Which candidates the tournament compares: the choice that was asked for, what a search finds by running the model, the best
of other criteria, and a different one.

Criteria that look at the same stream tend to agree, and err together: a layer whose small change the head reads with a large
gain is cheap to all of them. So one place is kept for the set that a search finds, which reads no stream but what the model
says, and from three candidates on one for the best choice that shares at most half of its layers with the others
(docs/choose.md has all before and after repair). Of two candidates the second is that of one shot, which leaves out each layer
once; a greedy search would take most of the time of a run that compares no more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from shoal.edits.plan import Candidate
from shoal.select.request import Evidence, Request
from shoal.select.span import plain_span_by
from shoal.select.table import SELECTORS
from shoal.words.types import Unit

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
MOST_RUNNERS_UP = 24  # So many are looked at per criterion for one that differs.


@dataclass
class Proposer:
    """A criterion: its name and its candidates from best to worst.

    Attributes:
        is_search: its best is compared, however much it shares with the others.
    """

    name: str
    candidates: Iterator[Candidate]
    is_search: bool = False


@dataclass
class _Proposed:
    """A candidate, and everybody who proposed it so far."""

    first: Candidate
    names: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def units(self) -> frozenset[Unit]:
        return self.first.units

    def add(self, name: str, candidate: Candidate) -> None:
        self.names.append(name)
        for score in candidate.scores.values():
            self.scores[name] = score

    def candidate(self) -> Candidate:
        return self.first.model_copy(update={"proposed_by": tuple(self.names), "scores": self.scores})


def search_beside(request: Request) -> str | None:
    """The selector whose search competes with the one that was asked for: with a selector of scores, where candidates are
    compared; greedy where there are three or more; where there are two, one shot, unless the score that was asked for is the
    same as its own."""
    runs_by_itself = SELECTORS[request.selector].reads & {"values", "weights"}
    if request.n_candidates < 2 or runs_by_itself or _in_one_span(request):
        return None
    if request.n_candidates > 2:
        return "greedy"
    return None if request.by == "left_out_kl" else "one-shot"  # That score is what this one shot chooses by.


def _in_one_span(request: Request) -> bool:
    """Layers in several spans need a module for each. Where these are layers of the family that costs no size; other modules
    cost parameters each, so there one span is looked for."""
    return request.put_back.name != "none" and not request.put_back.inherits


def found_by_search(evidence: Evidence, request: Request) -> list[Proposer]:
    """The search that competes with the selector that was asked for; it runs when it is first asked for a candidate."""
    name = search_beside(request)
    if evidence.value is None or name is None:
        return []
    return [Proposer(name, SELECTORS[name].propose(evidence, replace(request, selector=name)), is_search=True)]


def other_proposers(evidence: Evidence, request: Request) -> list[Proposer]:
    """The search, and the house's criteria on the tables at hand, as far as a replacement allows."""
    found = found_by_search(evidence, request)
    late = evidence.late
    if late is not None and late.name in evidence.tables:
        found.append(Proposer(f"span {late.name}", plain_span_by(evidence, replace(request, by=late.name))))
    for selector, by in OTHERS:
        if by not in evidence.tables or (_in_one_span(request) and not SELECTORS[selector].is_contiguous):
            continue
        asked = replace(request, by=by)
        found.append(Proposer(f"{selector} {by}", SELECTORS[selector].propose(evidence, asked)))
        if request.put_back.inherits and request.put_back.scores_inherited and selector == "span":
            found.append(Proposer(f"plain span {by}", plain_span_by(evidence, asked)))
    found.append(Proposer("deepest", SELECTORS["deepest"].propose(evidence, request)))
    return found


def propose(proposers: Sequence[Proposer], n_candidates: int) -> tuple[Candidate, ...]:
    """Up to ``n_candidates`` different candidates, in order of proposal; the first proposer's best comes first, and that of a
    search is among them.

    Returns: candidates that are not yet measured; fewer where there are no more.
    Raises: ValueError: the first proposer finds nothing.
    """
    bests: dict[frozenset[Unit], _Proposed] = {}
    for rank, proposer in enumerate(proposers):
        if rank and n_candidates == 1:
            break
        best = next(proposer.candidates, None)
        if best is None:
            if rank == 0:
                raise ValueError(f"{proposer.name!r} finds no layers that can go; protect fewer layers or remove fewer")
            continue
        bests.setdefault(best.units, _Proposed(best)).add(proposer.name, best)
    chosen = list(bests.values())[: max(1, n_candidates - 1)]
    searched = {proposer.name for proposer in proposers if proposer.is_search}
    chosen += [one for one in bests.values() if one not in chosen and searched & set(one.names)][: n_candidates - len(chosen)]
    if n_candidates > len(chosen):
        pool = {units: one for units, one in bests.items() if one not in chosen}
        _add_different(chosen, pool, proposers)
        for one in [*pool.values(), *_runners_up(proposers, {one.units for one in chosen} | set(pool))]:
            if len(chosen) >= n_candidates:
                break
            if all(one.units != other.units for other in chosen):
                chosen.append(one)
    return tuple(one.candidate() for one in chosen)


def _add_different(chosen: list[_Proposed], pool: dict[frozenset[Unit], _Proposed], proposers: Sequence[Proposer]) -> None:
    """Append the first choice that shares at most half of its layers with each chosen one; runners-up seen join the pool."""
    runners = _runners_up(proposers, {one.units for one in chosen} | set(pool))
    for one in [*pool.values()]:
        if _differs(one, chosen):
            chosen.append(one)
            return
    for one in runners:
        if _differs(one, chosen):
            chosen.append(one)
            return
        pool[one.units] = one


def _differs(one: _Proposed, chosen: Sequence[_Proposed]) -> bool:
    return all(2 * len(one.units & other.units) <= len(one.units) for other in chosen)


def _runners_up(proposers: Sequence[Proposer], known: set[frozenset[Unit]]) -> Iterator[_Proposed]:
    """Second choices of all proposers in turn, then third ones, ...; each set of layers once."""
    seen = set(known)
    live = [(proposer.name, islice(proposer.candidates, MOST_RUNNERS_UP)) for proposer in proposers]
    while live:
        still = []
        for name, candidates in live:
            following = next(candidates, None)
            if following is None:
                continue
            still.append((name, candidates))
            if following.units not in seen:
                seen.add(following.units)
                runner = _Proposed(following)
                runner.add(f"runner-up {name}", following)
                yield runner
        live = still
