"""The race: repaired candidates are compared on growing text, and whoever is clearly behind drops out early.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): every candidate is repaired on little text, and the better half,
less those that are clearly worse than the first, once more on more. What was measured is a file each, and so is each layer of
the candidate at work: a run that was killed repairs no candidate twice, and loses one layer of that candidate at most.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.edits.plan import Candidate
from shoal.engine.student import Student
from shoal.engine.workers import ALONE, Workers
from shoal.fit.kept_layers import KeptLayers
from shoal.words.progress import labelled
from shoal.words.records import stable_hash

RepairOfCandidate = Callable[[Candidate, KeptLayers | None], Student | None]
"""The student of a candidate with its repair in place, or None where nothing can be repaired.

The second argument holds the layers that an earlier run fitted, and takes those that this one fits."""

CLEARLY = 3.0
"""Standard errors of a difference. Both are measured on the same tokens, so the true error of their difference is smaller."""


@dataclass(frozen=True)
class Rung:
    """One round of a race: how its candidates are repaired, and on how many tokens."""

    n_tokens: int
    repair: RepairOfCandidate


class Standings:
    """Measured candidates of a race on disk, by candidate and rung.

    Args:
        folder: a file for each lies there; :meth:`clear` removes them.
        key: of everything else that the figures depend on.
        workers: the processes of the job; the first alone touches the folder.
    """

    def __init__(self, folder: Path, key: str, *, workers: Workers = ALONE) -> None:
        self._folder, self._key, self._workers = folder, key, workers

    def once(self, candidate: Candidate, rung: Rung, measure: Callable[[KeptLayers], Candidate]) -> Candidate:
        """What was measured of a candidate on this rung, read back where an earlier call has.

        Args:
            measure: gets the place for the candidate's fitted layers, which are forgotten when it is measured.
        """
        edits = [edit.model_dump(mode="json") for edit in candidate.edits]
        name = stable_hash(self._key, edits, rung.n_tokens)
        path, kept = self._folder / f"{name}.json", KeptLayers(self._folder / name, workers=self._workers)
        known = self._workers.from_first(lambda: Candidate.load(path) if path.exists() else None)
        if known is not None:
            return known
        found = measure(kept)
        self._workers.on_first(lambda: found.save(path))
        kept.clear()
        return found

    def clear(self) -> None:
        """Forget all of them: the choice is made."""
        self._workers.on_first(lambda: shutil.rmtree(self._folder, ignore_errors=True))


def race(
    candidates: Sequence[Candidate], rungs: Sequence[Rung], measure: Callable[[Candidate, Rung], Candidate]
) -> list[Candidate]:
    """All candidates with what was last measured of each, best first; who dropped out earlier stands behind who stayed.

    Args:
        rungs: of growing text. Two candidates meet on the last one alone.
        measure: the candidate with its figures on a rung; figures of different rungs are never compared.
    """
    running, behind = list(candidates), list[Candidate]()
    for i, rung in enumerate(rungs if len(running) > 2 else rungs[-1:]):
        if i and len(running) < 2:
            break
        measured = ranked(list(_each(running, rung, measure)))
        n_left = still_in(measured) if rung is not rungs[-1] else len(measured)
        running, behind = measured[:n_left], measured[n_left:] + behind
    return running + behind


def _each(running: Sequence[Candidate], rung: Rung, measure: Callable[[Candidate, Rung], Candidate]) -> Iterator[Candidate]:
    """All of them measured in turn; what that tells says which candidate of how many it is."""
    for k, one in enumerate(running, start=1):
        with labelled(f"candidate {k} of {len(running)}, "):
            yield measure(one, rung)


def ranked(measured: Sequence[Candidate]) -> list[Candidate]:
    """Lowest KL first; not a number, infinite or not measured last; equal ones as they were."""
    return sorted(measured, key=lambda one: math.inf if one.kl is None or not math.isfinite(one.kl) else one.kl)


def still_in(measured: Sequence[Candidate]) -> int:
    """How many of the ranked candidates go on: the better half, at least two, but nobody who is clearly behind the first."""
    n_left = max(2, math.ceil(len(measured) / 2))
    return max(1, sum(not _is_behind(one, measured[0]) for one in measured[:n_left]))


def _is_behind(one: Candidate, first: Candidate) -> bool:
    if one.kl is None or first.kl is None or not math.isfinite(one.kl):
        return True
    return one.kl - first.kl > CLEARLY * math.hypot(one.kl_stderr or 0.0, first.kl_stderr or 0.0) and one.kl > first.kl
