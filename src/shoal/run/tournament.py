"""The tournament: candidates are compared by what they lose after repair, the true KL to the teacher on ``selection``.

A mean cosine alone picks catastrophic spans (LinearPatch, arXiv 2505.24680, reports perplexity 2288 against 58 for two ways to
remove 7 of 32 layers of Llama-3-8B). Plain candidates run in one pass and share every common prefix. The tournament stands
above selection and repair, which do not know each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.edits.plan import Candidate, PartChoice
from shoal.engine.student import Student
from shoal.fit.kept_layers import KeptLayers
from shoal.measure.oracle import Oracle, Quality
from shoal.run.race import Rung, Standings, race, ranked
from shoal.select.budget import realised
from shoal.select.model_size import ModelSize
from shoal.select.shortlist import Shortlist, spread_of
from shoal.select.verdict import verdict


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        candidates: what was compared, best first; the first one was chosen.
        method: how it was chosen, for people.
        spread: what the selector alone would have chosen on disjoint parts of the calibration text, most frequent first.
    """

    candidates: tuple[Candidate, ...]
    method: str
    spread: tuple[PartChoice, ...] = ()

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


def choose(
    short: Shortlist,
    size: ModelSize,
    *,
    judge: Oracle | None = None,
    rungs: Sequence[Rung] = (),
    standings: Standings | None = None,
) -> Choice:
    """Choose among the candidates of a shortlist.

    Args:
        judge: measures on the ``selection`` text; needed where more than one candidate is compared.
        rungs, standings: as for :func:`tournament`.
    Raises:
        ValueError: several candidates are asked for, and there is no judge.
    """
    n_candidates = short.request.n_candidates
    if n_candidates > 1 and judge is None:
        raise ValueError(f"comparing {n_candidates} candidates needs text to measure on; give some, or set guard: 1")
    candidates = short.candidates
    if judge is not None and len(candidates) > 1:
        candidates = tournament(candidates, judge, rungs=rungs, standings=standings)
    decided = f"tournament of {len(candidates)} by KL; " if len(candidates) > 1 else ""
    size_said = realised(size, candidates[0].edits, short.request.put_back.own_parameters)
    said = f"{verdict(candidates, n_layers=size.n_layers)}; {size_said}; asked {short.budget.asked}"
    return Choice(candidates=candidates, method=decided + said, spread=spread_of(short))


def untrained(candidate: Candidate) -> Student:
    """The student of a candidate before anything in it is trained: the plain cut."""
    return Student(removed=candidate.units, name=str(candidate))


def tournament(
    candidates: Sequence[Candidate], judge: Oracle, *, rungs: Sequence[Rung] = (), standings: Standings | None = None
) -> tuple[Candidate, ...]:
    """Measure all candidates; lowest KL first, equal ones in the order given.

    Args:
        rungs: candidates race as they would be kept: repaired, or plain where the repair makes them worse; on growing text, see
            :mod:`shoal.run.race`. One candidate at a time then, so that only one holds its new values in memory. Without rungs
            they are compared plain.
        standings: keeps what was measured in a race.

    Raises:
        ValueError: no candidate, or none whose states are finite.
    """
    if not candidates:
        raise ValueError("a tournament needs at least one candidate")
    if not rungs:
        qualities = judge.measure([untrained(candidate) for candidate in candidates])
        measured = ranked([_measured(one, quality) for one, quality in zip(candidates, qualities, strict=True)])
    else:

        def measure(one: Candidate, rung: Rung) -> Candidate:
            if standings is None:
                return _as_kept(one, judge, rung, None)
            return standings.once(one, rung, lambda kept: _as_kept(one, judge, rung, kept))

        measured = race(candidates, rungs, measure)
    if not any(one.kl is not None and math.isfinite(one.kl) for one in measured):
        raise ValueError(
            "every candidate's states are NaN or infinite on this text; run with --dtype float32 or bfloat16, "
            "or remove fewer layers"
        )
    return tuple(measured)


def _measured(candidate: Candidate, quality: Quality) -> Candidate:
    stderr = None if math.isnan(quality.kl_stderr) else quality.kl_stderr
    return candidate.model_copy(update=dict(kl=quality.kl, kl_stderr=stderr, perplexity=quality.perplexity))


def _as_kept(candidate: Candidate, judge: Oracle, rung: Rung, kept: KeptLayers | None) -> Candidate:
    students = [untrained(candidate), rung.repair(candidate, kept)]
    plain, *repaired = judge.measure([one for one in students if one is not None])
    best = repaired[0] if repaired and not repaired[0].kl >= plain.kl and math.isfinite(repaired[0].kl) else plain
    return _measured(candidate, best).model_copy(update={"kl_plain": plain.kl, "repaired_on": rung.n_tokens})
