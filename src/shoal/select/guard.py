"""The guard: candidates are compared by what they lose, the true KL to the teacher on the ``selection`` text.

A mean cosine alone picks catastrophic spans (LinearPatch, arXiv 2505.24680, reports perplexity 2288 against 58 for two ways to
remove 7 of 32 layers of Llama-3-8B). All candidates run in one pass and share every common prefix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shoal.decoder import Student
from shoal.plan import Candidate, describe_removal
from shoal.score.oracle import Oracle
from shoal.types import Unit, spans_of

if TYPE_CHECKING:
    from rich.table import Table


def student_without(layers: Sequence[int]) -> Student:
    """The teacher's overlay that lacks whole layers."""
    return Student(removed=frozenset(Unit("layer", layer) for layer in layers), name=describe_short(layers))


def guard(candidates: Sequence[Candidate], oracle: Oracle) -> tuple[Candidate, ...]:
    """Measure all candidates in one pass; lowest KL first, equal ones in the order given.

    Raises:
        ValueError: no candidate, or none whose states are finite.
    """
    if not candidates:
        raise ValueError("the guard needs at least one candidate")
    qualities = oracle.measure([student_without(candidate.layers) for candidate in candidates])
    measured = [
        candidate.model_copy(
            update=dict(
                kl=quality.kl,
                kl_stderr=None if math.isnan(quality.kl_stderr) else quality.kl_stderr,
                perplexity=quality.perplexity,
            )
        )
        for candidate, quality in zip(candidates, qualities, strict=True)
    ]
    if not any(one.kl is not None and math.isfinite(one.kl) for one in measured):
        raise ValueError(
            "every candidate's states are NaN or infinite on this text; run with --dtype float32 or bfloat16, "
            "or remove fewer layers"
        )
    return tuple(sorted(measured, key=lambda one: math.inf if one.kl is None or not math.isfinite(one.kl) else one.kl))


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
    rest = f"; next {describe_short(second.layers)} {_kl(second)}" + (" (within the noise)" if close else "")
    return said + rest + (f"; worst {describe_short(worst.layers)} {_kl(worst)}" if len(candidates) > 2 else "")


def guard_table(candidates: Sequence[Candidate], *, n_layers: int) -> Table:
    """The comparison as a table for people, best first."""
    from rich.table import Table

    table = Table(
        title=f"Guard: {len(candidates)} candidates by KL to the teacher",
        caption=verdict(candidates, n_layers=n_layers),
        caption_justify="left",
    )
    table.add_column("layers out")
    table.add_column("KL (nats/token)", justify="right")
    table.add_column("perplexity", justify="right")
    table.add_column("proposed by")
    for rank, one in enumerate(candidates):
        proposed = "\n".join(f"{name} ({one.scores[name]:.4g})" if name in one.scores else name for name in one.proposed_by)
        perplexity = "" if one.perplexity is None else f"{one.perplexity:.4g}"
        table.add_row(describe_short(one.layers), _kl(one), perplexity, proposed, style="bold" if rank == 0 else None)
    return table


def describe_short(layers: Sequence[int]) -> str:
    """``8..11, 14``."""
    return ", ".join(str(run.start) if run.n == 1 else f"{run.start}..{run.stop - 1}" for run in spans_of(layers))


def _kl(candidate: Candidate) -> str:
    if candidate.kl is None:
        return "not measured"
    return f"{candidate.kl:.4g}" + ("" if candidate.kl_stderr is None else f" ± {candidate.kl_stderr:.2g}")
