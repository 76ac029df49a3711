"""The oracle v(S): what a student loses against its teacher, measured on fixed batches by running it.

Expensive where a scan is cheap, so it is memoised by the set of removed units, counts what it ran, and measures any number
of students in one pass that shares text, weights and every common prefix of layers.
Shapes: B samples, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.measure.divergence import forward_kl, predicts, token_nll, top1_agreement
from shoal.words.records import Record
from shoal.words.types import Batch, Unit


class Quality(Record):
    """A student against its teacher, over every real token that is followed by a real token.

    Attributes:
        kl: KL(teacher || student), nats per token; 0 is the teacher itself.
        kl_stderr: standard error of ``kl`` over samples (ratio estimator, so samples may differ in length); NaN for one sample.
        agreement: share of tokens where both give the same most likely next token.
        nll: mean negative log-likelihood of the text under the student, nats per token; ``perplexity`` is its exponential.
        n_tokens, n_samples: predicted tokens and samples averaged.
    """

    kl: float
    kl_stderr: float
    agreement: float
    nll: float
    perplexity: float
    n_tokens: int
    n_samples: int


@dataclass(frozen=True)
class TokenFigures:
    """What is summed, per token of a batch; (B, T-1), on the teacher's device. Figures where ``counted_BT`` is False may be
    anything, NaN included."""

    kl_BT: Tensor
    agreement_BT: Tensor
    nll_BT: Tensor
    counted_BT: Tensor


def token_figures(teacher_BTV: Tensor, student_BTV: Tensor, batch: Batch) -> TokenFigures:
    """KL, agreement and NLL of every token. The logits may live on different devices; the student's are moved."""
    device = teacher_BTV.device
    ids, mask = batch.ids_BT.to(device), None if batch.mask_BT is None else batch.mask_BT.to(device)
    student_BTV = student_BTV.to(device)
    # all T positions, the last one cut off after: slicing the logits would copy them
    next_BT = ids.roll(-1, dims=1)
    return TokenFigures(
        kl_BT=forward_kl(teacher_BTV, student_BTV)[:, :-1],
        agreement_BT=top1_agreement(teacher_BTV, student_BTV)[:, :-1],
        nll_BT=token_nll(student_BTV, next_BT)[:, :-1],
        counted_BT=predicts(ids, mask),
    )


class QualitySums:
    """Per-sample fp64 sums from which a :class:`Quality` follows; additive over batches.

    Args:
        workers: who share the batches, each its own; the result is that of all batches in order, bit for bit.
    """

    def __init__(self, workers: Workers = ALONE) -> None:
        self._workers = workers
        self._per_batch: list[Tensor] = []

    def add(self, teacher_BTV: Tensor, student_BTV: Tensor, batch: Batch) -> None:
        """Count one batch."""
        self.add_tokens(token_figures(teacher_BTV, student_BTV, batch))

    def add_tokens(self, found: TokenFigures) -> None:
        """Count a batch whose figures are known."""
        figures = (found.kl_BT, found.agreement_BT, found.nll_BT)
        # where, not multiplication: a padded position may hold anything, NaN included
        sums = [torch.where(found.counted_BT, one.double(), 0.0).sum(1) for one in figures]
        self._per_batch.append(torch.stack([*sums, found.counted_BT.sum(1).double()], 1).cpu())

    def per_sample(self) -> Tensor:
        """(S, 4) fp64: KL, agreement, nll, summed over the predicted tokens of each sample, and their number."""
        per_batch = self._workers.gather(self._per_batch)
        return torch.cat(per_batch) if per_batch else torch.zeros(0, 4, dtype=torch.float64)

    def result(self) -> Quality:
        """Raises ValueError: no sample has two real tokens in a row."""
        per_sample = self.per_sample()
        per_sample = per_sample[per_sample[:, 3] > 0]
        n_samples = len(per_sample)
        if not n_samples:
            raise ValueError("no token to measure on: every sample is shorter than 2 tokens; give longer text")
        kl_S, _, _, tokens_S = per_sample.unbind(1)
        n_tokens = tokens_S.sum()
        kl, agreement, nll = (per_sample[:, :3].sum(0) / n_tokens).tolist()
        spread = (kl_S - kl * tokens_S).square().sum() * n_samples / max(n_samples - 1, 1)
        stderr = (spread.sqrt() / n_tokens).item() if n_samples > 1 else math.nan
        return Quality(
            kl=kl,
            kl_stderr=stderr,
            agreement=agreement,
            nll=nll,
            perplexity=math.exp(nll) if nll < 700 else math.inf,
            n_tokens=int(n_tokens),
            n_samples=n_samples,
        )


class Oracle:
    """Measures students of one view on fixed batches.

    Args:
        view: the teacher; students are overlays on it.
        batches: the text, read again for every call of :meth:`measure` that has something new to run.
        after_batch: called when a batch is done, for progress.
        workers: who share every pass; all of them must ask for the same students.

    ``n_evaluations`` counts the students that were run; ``n_passes`` the readings of the text.
    """

    def __init__(
        self,
        view: DecoderView,
        batches: Sequence[Batch],
        *,
        after_batch: Callable[[Batch], None] | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.view = view
        self.batches = batches
        self.workers = workers
        self.n_evaluations = 0
        self.n_passes = 0
        self._after_batch = after_batch
        self._known: dict[frozenset[Unit], Quality] = {}

    def measure(self, students: Sequence[Student]) -> list[Quality]:
        """The quality of every student, in order; all that are not yet known share one pass.

        Only students that merely lack units are remembered: refitted values and attached modules may change between calls.
        """
        new: list[Student] = []
        for student in students:
            known = _is_removal(student) and (
                student.removed in self._known or any(_is_removal(one) and one.removed == student.removed for one in new)
            )
            if not known:
                new.append(student)
        measured = self._run(new) if new else []
        # by identity: a student holds tensors and modules, which have no value to compare
        results = {id(student): quality for student, quality in zip(new, measured, strict=True)}
        self._known.update((s.removed, q) for s, q in zip(new, measured, strict=True) if _is_removal(s))
        return [self._known[s.removed] if _is_removal(s) else results[id(s)] for s in students]

    def value(self, removed: frozenset[Unit] | set[Unit]) -> Quality:
        """v(S) with every unit active but ``removed``."""
        return self.measure([Student(removed=frozenset(removed))])[0]

    def _run(self, students: Sequence[Student]) -> list[Quality]:
        return [one.result() for one in self.sums(students)]

    def sums(self, students: Sequence[Student]) -> list[QualitySums]:
        """Sums per sample of every student, in order, in one pass of its own: nothing is remembered or taken from memory."""
        sums = [QualitySums(self.workers) for _ in students]

        def sink(reading: Reading, finals: list[Tensor]) -> None:
            teacher = self.view.head(finals[0], reading)
            for one, h_BTD in zip(sums, finals[1:], strict=True):
                same = h_BTD is finals[0]  # a student in the teacher's own group: no second head
                one.add(teacher, teacher if same else self.view.head(h_BTD, reading), reading.batch)

        run_pass(
            self.view,
            self.batches,
            students=[TEACHER, *students],
            sink=sink,
            after_batch=self._after_batch,
            workers=self.workers,
        )
        self.n_evaluations += len(students)
        self.n_passes += 1
        return sums


@torch.no_grad()
def compare_views(
    teacher: DecoderView,
    student: DecoderView,
    *,
    batches: Sequence[Batch],
    after_batch: Callable[[Batch], None] | None = None,
    workers: Workers = ALONE,
) -> Quality:
    """The quality of a model of its own (a saved student) against a teacher, on the same batches.

    Raises:
        ValueError: the two have different vocabularies, or no token can be measured.
    """
    sums = QualitySums(workers)
    for batch in workers.share(batches):
        sums.add(teacher.logits(batch), student.logits(batch), batch)
        if after_batch is not None:
            after_batch(batch)
    return sums.result()


def _is_removal(student: Student) -> bool:
    return not student.overrides and not student.attached
