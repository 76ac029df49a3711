"""The oracle v(S): what a student loses against its teacher, measured on fixed batches by running it.

Expensive where a scan is cheap, so it is memoised by the set of removed units, counts what it ran, and measures any number
of students in one pass that shares text, weights and every common prefix of layers.
Shapes: B samples, T positions, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.measure.counted import CountedBlock, head_blocks
from shoal.measure.divergence import predicts
from shoal.measure.one_pass import ComparedPass, compare_tokens
from shoal.words.numbers import saturating_exp
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
    """What is summed, per token of a batch; (B, T-1), on the teacher's device. Figures are 0 where ``counted_BT`` is False.

    ``overlap_BT``: sum min(p, q), where it was asked for.
    """

    kl_BT: Tensor
    agreement_BT: Tensor
    nll_BT: Tensor
    counted_BT: Tensor
    overlap_BT: Tensor | None = None


def token_figures(blocks: Iterable[CountedBlock], batch: Batch, *, with_overlap: bool = False) -> list[TokenFigures]:
    """KL, agreement and NLL of every counted token, for all students at once.

    Args:
        blocks: logits of the counted tokens, in order, of the teacher and of each student, as
            :func:`shoal.measure.counted.head_blocks` gives them; they may live on different devices.
        with_overlap: also the overlap of teacher and student.
    """
    found: list[list[ComparedPass]] = []
    counted_BT = predicts(batch.ids_BT, batch.mask_BT)
    next_N = batch.ids_BT[:, 1:][counted_BT]
    for block, (teacher_nV, *students_nV) in blocks:
        device = teacher_nV.device
        next_n = next_N[block].to(device)
        found.append(compare_tokens(teacher_nV, [one.to(device) for one in students_nV], next_n, with_overlap=with_overlap))

    def spread(pieces: Sequence[Tensor]) -> Tensor:
        values_N = torch.cat(list(pieces))
        where_BT = counted_BT.to(values_N.device)
        return values_N.new_zeros(where_BT.shape).masked_scatter_(where_BT, values_N)

    return [
        TokenFigures(
            kl_BT=spread([one.kl_N for one in pieces]),
            agreement_BT=spread([one.agreement_N for one in pieces]),
            nll_BT=spread([one.nll_N for one in pieces]),
            counted_BT=counted_BT.to(pieces[0].kl_N.device),
            overlap_BT=spread([one.overlap_N for one in pieces if one.overlap_N is not None]) if with_overlap else None,
        )
        for pieces in zip(*found, strict=True)
    ]


class QualitySums:
    """Per-sample fp64 sums from which a :class:`Quality` follows; additive over batches.

    Args:
        workers: who share the batches, each its own; the result is that of all batches in order, bit for bit.
    """

    def __init__(self, workers: Workers = ALONE) -> None:
        self._workers = workers
        self._per_batch: list[Tensor] = []

    def add(self, found: TokenFigures) -> None:
        """Count one batch."""
        figures = (found.kl_BT, found.agreement_BT, found.nll_BT)
        # The mask selects instead of multiplying: a padded position may hold anything, NaN included.
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
            perplexity=saturating_exp(nll),
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
            known = student.is_removal and (
                student.removed in self._known or any(one.is_removal and one.removed == student.removed for one in new)
            )
            if not known:
                new.append(student)
        measured = self._run(new) if new else []
        # Students are told apart by identity: they hold tensors and modules, which have no value to compare.
        results = {id(student): quality for student, quality in zip(new, measured, strict=True)}
        self._known.update((s.removed, q) for s, q in zip(new, measured, strict=True) if s.is_removal)
        return [self._known[s.removed] if s.is_removal else results[id(s)] for s in students]

    def value(self, removed: frozenset[Unit] | set[Unit]) -> Quality:
        """v(S) with every unit active but ``removed``."""
        return self.measure([Student(removed=frozenset(removed))])[0]

    def _run(self, students: Sequence[Student]) -> list[Quality]:
        return [one.result() for one in self.sums(students)]

    def sums(self, students: Sequence[Student]) -> list[QualitySums]:
        """Sums per sample of every student, in order, in one pass of its own: nothing is remembered or taken from memory."""
        sums = [QualitySums(self.workers) for _ in students]

        def sink(reading: Reading, finals: list[Tensor]) -> None:
            blocks = head_blocks([self.view] * len(finals), finals, predicts(reading.batch.ids_BT, reading.batch.mask_BT))
            for one, found in zip(sums, token_figures(blocks, reading.batch), strict=True):
                one.add(found)

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
