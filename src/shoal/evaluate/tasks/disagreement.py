"""How much was kept, by each kind of measure, and a warning where the kinds disagree.

Kept, as a share of the teacher: accuracy above chance for every form of task, and for text exp of minus the rise of the mean
negative log-likelihood (teacher's perplexity / student's: the geometric mean of the probability ratio of the right token).
A cut that keeps multiple choice often loses what is written token by token, so a single share is not quoted where they differ.
"""

import math
from collections.abc import Mapping

from shoal.evaluate.intervals import Interval
from shoal.evaluate.perplexity import Perplexity
from shoal.evaluate.tasks.benchmark import Benchmark

APART = 0.1  # A smaller gap is not worth a warning even where it is certain.
NAMES = {"choice": "multiple choice", "last_word": "last words", "generation": "generation"}


def kept_shares(
    tasks: Benchmark | None, *, teacher: Perplexity | None = None, student: Perplexity | None = None
) -> dict[str, Interval]:
    """What was kept, by kind of measure.

    Args:
        teacher, student: perplexities on one text, in tokens of one tokenizer. Their share has no interval: its bounds are the
            value; a student that is better keeps 1.
    """
    shares = {NAMES[kind.form]: kind.share for kind in (tasks.kinds if tasks else ())}
    if teacher is not None and student is not None:
        share = math.exp(min(0.0, teacher.nll - student.nll))
        shares["perplexity"] = Interval(value=share, low=share, high=share)
    return shares


def disagreement(shares: Mapping[str, Interval]) -> str | None:
    """One line when two kinds of measure differ by more than :data:`APART` and beyond their intervals, else None."""
    shares = {name: share for name, share in shares.items() if math.isfinite(share.low)}
    if len(shares) < 2:
        return None
    best = max(shares, key=lambda name: shares[name].low)
    worst = min(shares, key=lambda name: shares[name].high)
    if shares[best].value - shares[worst].value <= APART or shares[best].low <= shares[worst].high:
        return None
    said = ", ".join(f"{name} {_said(share)}" for name, share in shares.items())
    return f"The measures disagree about how much was kept of the teacher ({said}): do not judge by one of them alone"


def _said(share: Interval) -> str:
    bounds = "" if share.low == share.high else f" ({100 * share.low:.0f}..{100 * share.high:.0f})"
    return f"{100 * share.value:.0f} %{bounds}"
