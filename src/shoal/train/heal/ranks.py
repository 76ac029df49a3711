"""How a budget of adapter parameters is divided among layers: rank schedules, all of equal cost up to rounding.

A schedule gives each layer a weight; the ranks are proportional to the weights and cost together what the uniform rank costs.
Shapes: n layers; c_l = sum over the adapted maps of layer l of (inputs + outputs), the cost of one rank there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.train.heal.cut_place import CutPlace
from shoal.words.entries import Entries, by_name
from shoal.words.shares import scaled


@dataclass(frozen=True)
class RankEvidence:
    """What a schedule may look at.

    Attributes:
        n_layers: of the student.
        cut: where layers were removed; None when that is not known.
        scores: of each layer: how much worse the student's stream is behind it than before it; None when not measured.
    """

    n_layers: int
    cut: CutPlace | None = None
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RankSchedule:
    """A rule for weights per layer.

    Attributes:
        weights: evidence to n weights >= 0.
        needs_scores: whether ``scores`` have to be measured first; ``needs_cut``: whether the cut has to be known.
    """

    name: str
    about: str
    weights: Callable[[RankEvidence], Sequence[float]]
    needs_scores: bool = False
    needs_cut: bool = False


def uniform(evidence: RankEvidence) -> list[float]:
    """Every layer alike."""
    return [1.0] * evidence.n_layers


def rising(evidence: RankEvidence) -> list[float]:
    """From half the average at the first layer to one and a half at the last. PRILoRA, arXiv 2401.11316 (there 4 to 12)."""
    n = evidence.n_layers
    return [1.0] if n == 1 else [0.5 + layer / (n - 1) for layer in range(n)]


def falling(evidence: RankEvidence) -> list[float]:
    """The reverse of ``rising``."""
    return rising(evidence)[::-1]


def near_cut(evidence: RankEvidence) -> list[float]:
    """1 / (1 + layers between a layer and the nearest interface)."""
    assert evidence.cut is not None
    return [1 / (1 + distance) for distance in evidence.cut.distances()]


def from_scores(evidence: RankEvidence) -> list[float]:
    """In proportion to what each layer adds to the damage; layers that lessen it count as 0."""
    assert evidence.scores is not None
    scores = [max(0.0, score) for score in evidence.scores]
    return scores if sum(scores) else [1.0] * evidence.n_layers


RANKS: Entries[RankSchedule] = by_name(
    "rank schedule",
    RankSchedule("uniform", "one rank for all layers", uniform),
    RankSchedule("rising", "rising with depth, from half to one and a half times the rank (PRILoRA)", rising),
    RankSchedule("falling", "falling with depth", falling),
    RankSchedule("near_cut", "most beside the cut", near_cut, needs_cut=True),
    RankSchedule("from_scores", "by what each layer adds to the damage", from_scores, needs_scores=True, needs_cut=True),
)


def divided(weights: Sequence[float], costs: Sequence[int], rank: int, *, most: int | None = None) -> tuple[int, ...]:
    """Ranks in proportion to the weights that cost together at most what ``rank`` everywhere costs.

    Each layer with a map gets rank 1 at least, which the others make up for. The fractions that rounding down cuts off go back
    to the largest ones first, as far as the budget reaches (largest remainder).

    Args:
        weights, costs: per layer; a cost of 0 is a layer without adapted maps and gets rank 0.
        most: no layer gets more, and the others take what it leaves; ``rank`` at least.
    Raises:
        ValueError: no layer has a cost, or the weights are all 0.
    """
    budget = rank * sum(costs)
    scale = sum(weight * cost for weight, cost in zip(weights, costs, strict=True))
    if not scale > 0:
        raise ValueError("no layer has both a map to adapt and a weight above 0; choose other targets or another schedule")
    sizes = {layer: cost for layer, cost in enumerate(costs) if cost}
    # A layer of weight 0 gets more than rank 1 only where all others are at the limit.
    above_0 = {layer: max(weights[layer], 1e-9 * max(weights)) for layer in sizes}
    found = scaled(sizes, above_0, rank, least=1.0, most=float(most or budget))
    shares = [found.get(layer, 0.0) for layer in range(len(costs))]
    ranks = [math.floor(share + 1e-9) for share in shares]

    def left() -> int:
        return budget - sum(one * cost for one, cost in zip(ranks, costs, strict=True))

    by_remainder = sorted(range(len(ranks)), key=lambda i: (ranks[i] - shares[i], i))
    for i in by_remainder:
        if costs[i] and ranks[i] < shares[i] and costs[i] <= left():
            ranks[i] += 1
    return tuple(ranks)
