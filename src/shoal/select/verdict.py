"""What a comparison of candidates says, for people."""

import math
from collections.abc import Sequence

from shoal.edits.plan import Candidate, PartChoice
from shoal.words.numbers import with_error
from shoal.words.structure import describe_units, runs_said


def verdict(candidates: Sequence[Candidate], *, n_layers: int) -> str:
    """One sentence for people: who won, by how much, and against whom."""
    winner = candidates[0]
    first, *more = winner.proposed_by
    by = first + (f" and {len(more)} more" if more else "")
    said = f"{describe_units(winner.units, n_layers)}, proposed by {by}"
    if winner.kl is None:
        return said
    said += f", KL {kl_said(winner)}"
    if len(candidates) == 1:
        return said
    second = candidates[1]
    noise = math.hypot(winner.kl_stderr or 0.0, second.kl_stderr or 0.0)
    close = second.kl is not None and second.kl - winner.kl <= noise
    worst = candidates[-1]
    rest = f"; next {second} {kl_said(second)}" + (" (within the noise)" if close else "")
    return said + rest + (f"; worst {worst} {kl_said(worst)}" if len(candidates) > 2 else "")


def spread_said(spread: Sequence[PartChoice]) -> str:
    """How much the selector's own choice depends on the calibration text, for people; empty where that is not known."""
    if not spread:
        return ""
    picks = ", ".join(f"{runs_said(one.layers)} on {one.n_parts}" for one in spread)
    return f"by its score alone, on {sum(one.n_parts for one in spread)} disjoint parts of the calibration text: {picks}"


def kl_said(candidate: Candidate) -> str:
    """The KL of a candidate with its error, in words where none was measured."""
    return "not measured" if candidate.kl is None else with_error(candidate.kl, candidate.kl_stderr)
