"""How several layers become one: the table of rules of ``Merge``. Plain data, free of torch.

Every rule is a weighted sum of the layers' weights, w_0 of the layer that stays, w_k of the k-th that goes into it. LaCo (arXiv
2402.11187) adds all differences to it, ``W_0 + sum_k (W_k - W_0)``, so w = (1 - n, 1, .., 1) for n that go. The programs
released with LaCo and with sliding layer merging (arXiv 2502.19159) add each difference to what they have by then, which leaves
the maps of the *last* layer and the vectors (norms) of the first: ``keep_last``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.words.entries import Entries, by_name


@dataclass(frozen=True)
class MergeRule:
    """One rule.

    Attributes:
        about: one line for people.
        weights: of n + 1 layers, the one that stays first; None: they are given with the edit.
        maps_alone: vectors (norms, biases that belong to no map) stay as they are.
    """

    name: str
    about: str
    weights: Callable[[int], tuple[float, ...]] | None
    maps_alone: bool = False


RULES: Entries[MergeRule] = by_name(
    "merge rule",
    MergeRule("sum_diff", "the first layer and all differences to it", lambda n: (1.0 - n, *([1.0] * n))),
    MergeRule("keep_last", "the maps of the last layer", lambda n: (*([0.0] * n), 1.0), maps_alone=True),
    MergeRule("mean", "the mean", lambda n: (1 / (n + 1),) * (n + 1)),
    MergeRule("weighted", "a sum with given weights", None),
)


def joined_weights(rule: MergeRule, groups: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The weights of all layers of some neighbouring groups, each a weighted sum itself, that become one by a rule.

    Args:
        groups: the weights inside each group; a layer of its own is ``(1.0,)``.
    Raises:
        ValueError: a rule whose weights are given.
    """
    if rule.weights is None:
        raise ValueError(f"rule {rule.name!r} has no weights of its own; use sum_diff, keep_last or mean")
    outer = rule.weights(len(groups) - 1)
    return tuple(w * v for w, group in zip(outer, groups, strict=True) for v in group)
