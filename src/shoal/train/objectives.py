"""What a student is trained to do, by name: pure functions of a student's and a teacher's tensors, and weighted sums of them.

Every objective is a mean over positions, and says over which, so that the loop can weigh pieces of a batch by their positions
and get the whole batch's value. The table is plain data, free of torch: recipes, the command's help and the planner read it.
Shapes: B samples, T positions, D hidden size, V vocabulary, K terms of a sum.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from shoal.words.entries import Entries, by_name
from shoal.words.late import late
from shoal.words.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

ObjectiveNeed = Literal["boundary", "logits", "labels"]


@dataclass(frozen=True)
class Objective:
    """A loss and what it reads.

    Attributes:
        needs: ``boundary``: both streams where the student's next layer begins; no layer after the last such boundary runs.
            ``logits``: both models' logits. ``labels``: the student's logits and the text.
        loss: (student, reference, mask_BT or None) to a scalar, the mean over its positions; differentiable in the student.
            The reference is the teacher's stream, the teacher's logits or the token ids.
        about: one line for people.
        parameter: name of its one number, if it has one: ``name(0.2)`` sets it.
    """

    name: str
    needs: ObjectiveNeed
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    about: str
    parameter: str | None = None

    def count(self, batch: Batch) -> int:
        """Positions of a batch that the mean is over."""
        from shoal.measure.divergence import predicts

        return int(predicts(batch.ids_BT, batch.mask_BT).sum()) if self.needs == "labels" else n_real_tokens(batch)


OBJECTIVES: Entries[Objective] = by_name(
    "objective",
    Objective("hidden_mse", "boundary", late("shoal.train.stream_losses:hidden_mse"), "mean squared error of the stream"),
    Objective(
        "relative_mse",
        "boundary",
        late("shoal.train.stream_losses:relative_mse"),
        "squared error of each token over its squared norm",
    ),
    Objective(
        "cosine", "boundary", late("shoal.train.stream_losses:cosine_loss"), "one minus the cosine of each token's stream"
    ),
    Objective("next_token", "labels", late("shoal.train.logit_losses:next_token"), "negative log-likelihood of the text"),
    Objective("forward_kl", "logits", late("shoal.train.logit_losses:forward_kl_loss"), "KL(teacher || student)"),
    Objective("reverse_kl", "logits", late("shoal.train.logit_losses:reverse_kl_loss"), "KL(student || teacher)"),
    Objective(
        "skewed_forward_kl",
        "logits",
        late("shoal.train.logit_losses:skewed_forward_kl"),
        "KL(teacher || alpha teacher + rest student)",
        "alpha",
    ),
    Objective(
        "skewed_reverse_kl",
        "logits",
        late("shoal.train.logit_losses:skewed_reverse_kl"),
        "KL(student || alpha student + rest teacher)",
        "alpha",
    ),
    Objective(
        "jensen_shannon", "logits", late("shoal.train.logit_losses:jensen_shannon_loss"), "mean KL of both to their average"
    ),
    Objective(
        "topk_forward_kl",
        "logits",
        late("shoal.train.logit_losses:topk_forward_kl"),
        "KL over the teacher's k best tokens and the rest as one",
        "k",
    ),
)


def objective_named(name: str) -> Objective:
    """An entry of the table; ``skewed_forward_kl(0.2)`` sets its number.

    Raises:
        ValueError: unknown name, with the nearest; a number where there is none to set.
    """
    base, _, number = name.partition("(")
    one = OBJECTIVES.named(base)
    if not number:
        return one
    if one.parameter is None:
        raise ValueError(f"objective {name!r}: {base} has no number to set")
    try:
        value = float(number.removesuffix(")"))
    except ValueError:
        raise ValueError(f"objective {name!r} needs a number in its brackets, its {one.parameter}") from None
    import torch

    chosen = functools.partial(one.loss, **{one.parameter: value})
    still = torch.zeros(1, 2, 1)
    chosen(still, still, None)  # A number out of range is refused here, before any work.
    return replace(one, name=name, loss=chosen)


@dataclass(frozen=True)
class WeightedSum:
    """What a student is trained on: objectives with their weights."""

    terms: tuple[tuple[float, Objective], ...]

    @property
    def needs(self) -> frozenset[ObjectiveNeed]:
        return frozenset(objective.needs for _, objective in self.terms)

    @property
    def weights(self) -> Tensor:
        """(K,), fp64."""
        import torch

        return torch.tensor([weight for weight, _ in self.terms], dtype=torch.float64)

    def counts(self, batch: Batch) -> Tensor:
        """Positions (K,) of a batch that each term's mean is over, fp64."""
        import torch

        return torch.tensor([objective.count(batch) for _, objective in self.terms], dtype=torch.float64)

    def means(
        self,
        *,
        boundaries: Sequence[tuple[Tensor, Tensor]],
        logits: Tensor | None,
        teacher_BTV: Tensor | None,
        batch: Batch,
    ) -> Tensor:
        """Each term's mean (K,) over its positions of a batch, not weighted yet.

        Args:
            boundaries: the student's and the teacher's stream at each target; a term on streams is the mean over them.
            logits, teacher_BTV: the student's and the teacher's, where a term needs them.
        """
        import torch

        means = []
        for _, objective in self.terms:
            mask_BT = batch.mask_BT
            if objective.needs == "boundary":
                losses = [objective.loss(student, teacher, mask_BT) for student, teacher in boundaries]
                means.append(losses[0] if len(losses) == 1 else torch.stack(losses).mean())
            else:
                reference = batch.ids_BT if objective.needs == "labels" else teacher_BTV
                assert logits is not None and reference is not None
                means.append(objective.loss(logits, reference, mask_BT))
        return torch.stack(means)

    def __str__(self) -> str:
        return " + ".join(one.name if weight == 1 else f"{weight:g}*{one.name}" for weight, one in self.terms)


def weighted_sum(text: str) -> WeightedSum:
    """Read ``hidden_mse``, ``hidden_mse + 0.1*forward_kl``, ``2*skewed_forward_kl(0.2)``.

    Raises:
        ValueError: not of this form, a weight that is not positive, an unknown name, the same objective twice.
    """
    terms = []
    for part in text.split("+"):
        found = re.fullmatch(r"(?:(-?[0-9.]+(?:e-?[0-9]+)?)\*)?([a-z_0-9]+(?:\([^()]*\))?)", part.replace(" ", "").lower())
        if found is None:
            raise ValueError(
                f"objective {text!r} needs the form NAME or WEIGHT*NAME + ..., such as hidden_mse + 0.1*forward_kl"
            )
        weight = _weight(found[1] or "1")
        if not 0 < weight < math.inf:
            raise ValueError(f"objective {text!r}: weight {found[1]} of {found[2]} needs to be a finite number above 0")
        terms.append((weight, objective_named(found[2])))
    names = [one.name.partition("(")[0] for _, one in terms]
    if len(set(names)) < len(names):
        raise ValueError(f"objective {text!r} names one objective twice")
    return WeightedSum(tuple(terms))


def _weight(text: str) -> float:
    """The number, or NaN where it is none, such as 1.2.3."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def n_real_tokens(batch: Batch) -> int:
    """Tokens of a batch without padding: its weight in a mean over several."""
    return batch.ids_BT.numel() if batch.mask_BT is None else int(batch.mask_BT.count_nonzero())
