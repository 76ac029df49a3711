"""The guard: candidates are compared by what they lose, the true KL to the teacher on the ``selection`` text.

A mean cosine alone picks catastrophic spans (LinearPatch, arXiv 2505.24680, reports perplexity 2288 against 58 for two ways to
remove 7 of 32 layers of Llama-3-8B). All candidates run in one pass and share every common prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from shoal.edits.plan import Candidate, PartChoice
from shoal.engine.student import Student, student_without
from shoal.measure.oracle import Oracle, Quality
from shoal.words.structure import describe_removal, runs_said

Repair = Callable[[Sequence[int]], Student | None]
"""The student that lacks these layers with its repair in place, or None where nothing can be repaired."""


def guard(candidates: Sequence[Candidate], oracle: Oracle, *, repair: Repair | None = None) -> tuple[Candidate, ...]:
    """Measure all candidates in one pass; lowest KL first, equal ones in the order given.

    Args:
        repair: candidates are compared as they would be kept: repaired, or plain where the repair makes them worse. One
            candidate at a time then, so that only one holds its new values in memory.

    Raises:
        ValueError: no candidate, or none whose states are finite.
    """
    if not candidates:
        raise ValueError("the guard needs at least one candidate")
    if repair is None:
        qualities = oracle.measure([student_without(candidate.layers) for candidate in candidates])
        measured = [_measured(candidate, quality) for candidate, quality in zip(candidates, qualities, strict=True)]
    else:
        measured = [_as_kept(candidate, oracle, repair) for candidate in candidates]
    if not any(one.kl is not None and math.isfinite(one.kl) for one in measured):
        raise ValueError(
            "every candidate's states are NaN or infinite on this text; run with --dtype float32 or bfloat16, "
            "or remove fewer layers"
        )
    return tuple(sorted(measured, key=lambda one: math.inf if one.kl is None or not math.isfinite(one.kl) else one.kl))


def _measured(candidate: Candidate, quality: Quality) -> Candidate:
    stderr = None if math.isnan(quality.kl_stderr) else quality.kl_stderr
    return candidate.model_copy(update=dict(kl=quality.kl, kl_stderr=stderr, perplexity=quality.perplexity))


def _as_kept(candidate: Candidate, oracle: Oracle, repair: Repair) -> Candidate:
    students = [student_without(candidate.layers), repair(candidate.layers)]
    plain, *repaired = oracle.measure([one for one in students if one is not None])
    best = repaired[0] if repaired and not repaired[0].kl >= plain.kl and math.isfinite(repaired[0].kl) else plain
    return _measured(candidate, best).model_copy(update={"kl_plain": plain.kl})


def verdict(candidates: Sequence[Candidate], *, n_layers: int) -> str:
    """One sentence for people: who won, by how much, and against whom."""
    winner = candidates[0]
    first, *more = winner.proposed_by
    by = first + (f" and {len(more)} more" if more else "")
    said = f"{describe_removal(winner.layers, n_layers)}, proposed by {by}"
    if winner.kl is None:
        return said
    said += f", KL {_kl(winner)}"
    if len(candidates) == 1:
        return said
    second = candidates[1]
    noise = math.hypot(winner.kl_stderr or 0.0, second.kl_stderr or 0.0)
    close = second.kl is not None and second.kl - winner.kl <= noise
    worst = candidates[-1]
    rest = f"; next {runs_said(second.layers)} {_kl(second)}" + (" (within the noise)" if close else "")
    return said + rest + (f"; worst {runs_said(worst.layers)} {_kl(worst)}" if len(candidates) > 2 else "")


def spread_said(spread: Sequence[PartChoice]) -> str:
    """How much the selector's own choice depends on the calibration text, for people; empty where that is not known."""
    if not spread:
        return ""
    picks = ", ".join(f"{runs_said(one.layers)} on {one.n_parts}" for one in spread)
    return f"by its score alone, on {sum(one.n_parts for one in spread)} disjoint parts of the calibration text: {picks}"


def _kl(candidate: Candidate) -> str:
    if candidate.kl is None:
        return "not measured"
    return f"{candidate.kl:.4g}" + ("" if candidate.kl_stderr is None else f" ± {candidate.kl_stderr:.2g}")
