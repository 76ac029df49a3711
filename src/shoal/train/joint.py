"""Students in training: any number of them read one teacher stream per batch.

The teacher runs once, without gradients, up to the last boundary that any of them needs. Trained parts run with the recorded
arguments of their layer, so under the masks they will have in the checkpoint.
Shapes: B samples, T positions, D hidden size, V vocabulary, S students, K terms of the objective.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.engine.student import TEACHER
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.train.data_parallel import without_exchange
from shoal.train.objectives import WeightedSum, n_real_tokens
from shoal.train.parts import Start, TrainedPart, Trainee, frozen
from shoal.train.prefix import AskedBoundaries, PrefixSource, Steps, source_of
from shoal.words.progress import tell
from shoal.words.types import Batch

__all__ = ["StreamEnds", "TrainedPart", "Start", "Trainee", "Trainees", "accumulate", "n_real_tokens"]

RunStreams = Callable[..., Iterator[tuple[int, Tensor]]]


@dataclass(frozen=True, eq=False)
class StreamEnds:
    """What a batch gives the students before any of them runs.

    Attributes:
        inputs: per student, its own boundary where its trained parts begin.
        teacher: the teacher's boundaries that are somebody's target; L among them where logits are compared.
    """

    inputs: list[Tensor]
    teacher: dict[int, Tensor]


class Trainees(nn.Module):
    """All students of one run. Its forward reads a batch and returns every loss, so data parallelism can wrap it.

    ``objective`` is what they are trained on; the loop changes it from stage to stage.
    """

    def __init__(self, view: DecoderView, starts: Sequence[Start], objective: WeightedSum, *, bfloat16: bool = False) -> None:
        super().__init__()
        if not starts:
            raise ValueError("nothing to train: give at least one start")
        self._view, self.objective = view, objective
        self.members: list[Trainee] = [Trainee(view, start, bfloat16=bfloat16) for start in starts]
        self._registered = nn.ModuleList(self.members)
        self._training, self._validating = source_of(view), source_of(view)

    def layers_of_a_step(self, objective: WeightedSum) -> set[int]:
        """The kept layers that run behind or inside the trained parts."""
        found: set[int] = set()
        for member in self.members:
            stop = self._view.n_layers if objective.needs - {"boundary"} else member.targets[-1]
            steps = (step for layer in range(member.first, stop) for step in member.deployed.steps(layer))
            found |= {step.layer for step in steps if step.module is None}
        return found

    def refuse_absent_layers(self, objective: WeightedSum) -> None:
        """Raises ValueError when a step would read layers from disk."""
        has_head = bool(objective.needs - {"boundary"})
        needed = self.layers_of_a_step(objective)
        held = self._view.residency.n_resident
        if len(needed) > held:
            # With logits every layer behind a part runs, be it one part or several.
            cures = ["an objective on hidden states"] * has_head
            cures += ["train.several=sequential"] * any(len(member.parts) > 1 for member in self.members)
            cure = " and ".join(cures) + ", " if cures else ""
            raise ValueError(
                f"every step of {objective} runs {len(needed)} kept layers ({min(needed)}..{max(needed)}), and {held} of the "
                f"layers on disk are held in memory; use {cure}--resident {len(needed)} or --resident all"
            )

    def ahead(self, steps: Steps) -> Iterator[tuple[int, list[Batch]]]:
        """The same steps, each when its batches can be read; see :mod:`shoal.train.prefix`."""
        return self._training.ahead(steps, self._asked(self.objective))

    def forward(self, batch: Batch) -> Tensor:
        """Means (S, K) of every term over the batch's own positions, of the masters, with gradients. Not weighted yet."""
        with frozen(self._view.model):
            return self._terms(batch, self.objective, Trainee.boundaries, self._training)

    @torch.no_grad()
    def validation(
        self, batches: Sequence[Batch], objective: WeightedSum | None = None, *, workers: Workers = ALONE
    ) -> list[float]:
        """Losses of the deployed copies over all batches, which the workers share; weighted by positions, summed in fp64."""
        objective = self.objective if objective is None else objective
        counts = torch.zeros(len(objective.terms), dtype=torch.float64)
        total = torch.zeros(len(self.members), len(objective.terms), dtype=torch.float64)
        steps = ((number, [batch]) for number, batch in enumerate(workers.share(batches)))
        for number, (batch,) in self._validating.ahead(steps, self._asked(objective)):
            tell("validate", number + 1, len(batches))
            count = objective.counts(batch)
            total += count * self._terms(batch, objective, Trainee.deployed_boundaries, self._validating).double().cpu()
            counts = counts + count
        sums = workers.sum({"total": total, "counts": counts})
        return [float(value) for value in (sums["total"] / sums["counts"]) @ objective.weights]

    def deploy(self) -> None:
        for member in self.members:
            member.deploy()

    def _terms(self, batch: Batch, objective: WeightedSum, run: RunStreams, source: PrefixSource) -> Tensor:
        reading = self._view.read(batch)
        ends = self._ends(reading, objective, source)
        n_layers, head = self._view.n_layers, objective.needs - {"boundary"}
        teacher_BTV = self._view.head(ends.teacher[n_layers], reading) if "logits" in head else None
        losses = []
        for member, h_BTD in zip(self.members, ends.inputs, strict=True):
            stop = n_layers if head else member.targets[-1]
            ours = {at: h for at, h in run(member, h_BTD, reading, stop=stop) if at in member.targets or at == stop}
            logits = self._view.head_with_grad(ours[n_layers].to(self._view.dtype), reading) if head else None
            pairs = [(ours[at], ends.teacher[at]) for at in member.targets] if "boundary" in objective.needs else []
            losses.append(objective.means(boundaries=pairs, logits=logits, teacher_BTV=teacher_BTV, batch=reading.batch))
        return torch.stack(losses)

    def _asked(self, objective: WeightedSum) -> AskedBoundaries:
        """One teacher stream, and one for every student that differs from the teacher before its trained parts."""
        of_teacher = {member.first for member in self.members if member.start.reads_teacher(member.first)}
        students = [member for member in self.members if not member.start.reads_teacher(member.first)]
        return AskedBoundaries(
            (TEACHER, *(member.start.student for member in students)),
            (frozenset(self._targets(objective) | of_teacher), *(frozenset({member.first}) for member in students)),
        )

    def _targets(self, objective: WeightedSum) -> set[int]:
        """The teacher's boundaries that students are compared with."""
        targets = {at for member in self.members for at in member.targets} if "boundary" in objective.needs else set()
        return targets | ({self._view.n_layers} if "logits" in objective.needs else set())

    def _ends(self, reading: Reading, objective: WeightedSum, source: PrefixSource) -> StreamEnds:
        teacher, *others = source.states(reading, self._asked(objective))
        left = iter(others)
        inputs = [
            teacher[member.first] if member.start.reads_teacher(member.first) else next(left)[member.first]
            for member in self.members
        ]
        return StreamEnds(inputs, {at: teacher[at] for at in self._targets(objective)})


def accumulate(
    trainees: nn.Module,
    pieces: Sequence[Batch],
    objective: WeightedSum,
    *,
    of: Sequence[Batch] | None = None,
    workers: Workers = ALONE,
) -> Tensor:
    """Add the gradients of the objective over all positions of a batch that comes in pieces.

    Args:
        trainees: :class:`Trainees`, or a data-parallel wrapper of it.
        pieces: of any sizes and paddings; each weighs as many positions as it has.
        objective: the trainees' own.
        of: all pieces of the batch, where ``pieces`` are those of one of several workers.
        workers: who have the others; the gradients are added over all of them.
    Returns:
        The losses (S,) of the whole batch, float64 on the CPU.
    """
    whole = pieces if of is None else of
    count_K = torch.stack([objective.counts(piece) for piece in whole]).sum(0).clamp(min=1)
    # All workers take part in the exchange, also those that have no sample of a small batch.
    is_idle = workers.rank >= sum(len(piece.ids_BT) for piece in whole)
    weights_K = objective.weights * (0 if is_idle else workers.size)  # The exchange ends in a mean over workers.
    total = torch.zeros((), dtype=torch.float64)
    for number, piece in enumerate(pieces, start=1):
        with nullcontext() if number == len(pieces) else without_exchange(trainees):
            terms_SK = trainees(piece)
            losses_S = (terms_SK * (objective.counts(piece) / count_K * weights_K).to(terms_SK)).sum(-1)
            losses_S.sum().backward()
        total = total + losses_S.detach().double().cpu()
    return workers.sum({"losses": total / workers.size})["losses"]
