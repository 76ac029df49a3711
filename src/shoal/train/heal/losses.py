"""What a healing trains for: the weighted sum of the table of objectives, over the tokens that are to be predicted.

Objectives on logits and labels count the positions whose next token is a label (all of them in plain text, those before answers
in chats); objectives on hidden states count every real token and are a mean over the boundaries compared.
Shapes: B samples, T positions, D hidden size, V vocabulary, N counted positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.measure.divergence import forward_kl as kl_per_token
from shoal.measure.divergence import token_nll
from shoal.train.heal.config import HealConfig
from shoal.train.heal.streams import Streams
from shoal.train.heal.text_rows import counted
from shoal.train.logit_losses import next_token_at
from shoal.train.objectives import WeightedSum, weighted_sum


@dataclass(frozen=True)
class HealLoss:
    """A weighted sum of objectives with the boundaries they compare.

    Attributes:
        pairs: boundaries (student's, teacher's); empty where no objective is on hidden states.
    """

    sum: WeightedSum
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def needs_logits(self) -> bool:
        """The teacher's logits are read."""
        return "logits" in self.sum.needs

    @property
    def needs_states(self) -> bool:
        """The teacher's hidden states are read, so that it has to run in every step."""
        return "boundary" in self.sum.needs

    @property
    def needs_teacher(self) -> bool:
        return self.needs_logits or self.needs_states

    @property
    def student_boundaries(self) -> tuple[int, ...]:
        return tuple(student for student, _ in self.pairs)

    @property
    def teacher_boundaries(self) -> tuple[int, ...]:
        return tuple(teacher for _, teacher in self.pairs)

    def __call__(
        self, student: Streams, teacher: Streams | None, batch: dict[str, Tensor], shares_2: Tensor | None = None
    ) -> Tensor:
        """The sum for one batch, a scalar: each term's mean times its weight.

        Args:
            shares_2: of a larger batch's :func:`tokens_of` that are in this piece of it; each term is taken times its own.
        """
        counted_BT = counted(batch["labels"])
        logits_NV = student.logits_BTV[:, :-1][counted_BT]
        total: Tensor | None = None
        for weight, objective in self.sum.terms:
            if objective.needs == "labels":
                value = next_token_at(logits_NV, batch["labels"][:, 1:][counted_BT])
            elif objective.needs == "logits":
                assert teacher is not None
                theirs_NV = teacher.logits_BTV[:, :-1][counted_BT]
                value = objective.loss(logits_NV[None], theirs_NV[None], None)
            else:
                assert teacher is not None
                mask_BT = batch.get("attention_mask")
                pairs = [(student.states[ours], teacher.states[theirs]) for ours, theirs in self.pairs]
                value = sum((objective.loss(a, b.to(a.device), mask_BT) for a, b in pairs), start=logits_NV.new_zeros(()))
                value = value / len(pairs)
            if shares_2 is not None:
                value = value * shares_2[int(objective.needs == "boundary")]
            total = weight * value if total is None else total + weight * value
        assert total is not None
        return total

    def __str__(self) -> str:
        at = f" at boundaries {', '.join(str(ours) for ours in self.student_boundaries)}" if self.pairs else ""
        return f"{self.sum}{at}"


def tokens_of(batch: dict[str, Tensor]) -> Tensor:
    """Tokens that objectives count in a batch, two numbers: those to predict, and real ones, which hidden states are of.

    They stay on the device of the batch: a step on a card does not wait for them.
    """
    labels_BT, mask_BT = batch["labels"], batch.get("attention_mask")
    is_real_BT = torch.ones_like(labels_BT) if mask_BT is None else mask_BT
    return torch.stack([counted(labels_BT).sum(), is_real_BT.sum()])


def objective_of(config: HealConfig, *, has_teacher: bool) -> WeightedSum:
    """The objective a config means.

    Raises:
        ValueError: it needs a teacher and there is none; it reads hidden states, or no logits, where those are cached.
    """
    name = config.objective or ("forward_kl" if has_teacher else "next_token")
    found = weighted_sum(name)
    if found.needs - {"labels"} and not has_teacher:
        raise ValueError(f"objective {name!r} compares with a teacher; give --teacher, or use --objective next_token")
    if config.teacher_bits is not None and not found.needs - {"labels"}:
        raise ValueError(f"teacher_bits={config.teacher_bits} is not read by objective {name!r}; leave it out")
    if config.teacher_cache is None:
        return found
    if "boundary" in found.needs:
        raise ValueError(f"objective {name!r} reads hidden states, and teacher_cache keeps logits alone; leave out one of them")
    if "logits" not in found.needs:
        raise ValueError(f"teacher_cache={config.teacher_cache} is not read by objective {name!r}; leave it out")
    return found


def measured(student_BTV: Tensor, teacher_BTV: Tensor | None, labels_BT: Tensor) -> tuple[Tensor, Tensor | None]:
    """Sums over the counted positions, fp64: next-token NLL of the labels, and KL(teacher || student) where there is one."""
    counted_BT = counted(labels_BT)
    ours_NV = student_BTV[:, :-1][counted_BT]
    nll = token_nll(ours_NV, labels_BT[:, 1:][counted_BT]).double().sum()
    if teacher_BTV is None:
        return nll, None
    return nll, kl_per_token(teacher_BTV[:, :-1][counted_BT], ours_NV).double().sum()
