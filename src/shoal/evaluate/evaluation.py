"""An evaluation: what teacher and student cost and say on held-out text, as one record that is a file.

The figures disagree about quality by nature (a model may keep its perplexity and lose its answers), so all stand side by
side: perplexity of both, KL and agreement between them, greedy generations, cost, speed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.evaluate.cost import Cost, cost
from shoal.evaluate.generate import Generation
from shoal.evaluate.perplexity import Perplexity, n_batches, perplexities, perplexity, usual_stride
from shoal.evaluate.positions import ByPosition, PositionSums
from shoal.evaluate.speed import Speed
from shoal.evaluate.tasks.benchmark import Benchmark, TaskFigures
from shoal.evaluate.whole import WholeText
from shoal.measure.counted import CountedBlock, end_of, head_blocks, model_blocks
from shoal.measure.divergence import predicts
from shoal.measure.oracle import Quality, QualitySums, token_figures
from shoal.words.records import Provenance, Record
from shoal.words.types import Batch


class Figures(Record):
    """One model on its own."""

    name: str
    cost: Cost
    perplexity: Perplexity


class Measured(Record):
    """One model on its own, and what its figures rest on. ``whole``: all of the text, where that was asked for."""

    model: Figures
    whole: WholeText | None = None
    tasks: tuple[TaskFigures, ...] = ()
    provenance: Provenance


class Evaluation(Record):
    """Teacher and student compared; ``evaluation.json`` of a run folder.

    Attributes:
        quality: the student against the teacher, per token of the batches as they are (no stride).
        by_position: the same tokens by their position: KL, expected speculative acceptance, agreement. None in older files.
        plain: the same cut without repair, on the same text; present when something was repaired.
        generations, speed: present when they were measured; they need both as models of their own.
        tasks: accuracy, stability and flips on task files, when some were given.
        whole: teacher and student on all of the text, where that was asked for.
    """

    teacher: Figures
    student: Figures
    quality: Quality
    by_position: ByPosition | None = None
    plain: Quality | None = None
    generations: tuple[Generation, ...] = ()
    speed: Speed | None = None
    tasks: Benchmark | None = None
    whole: tuple[WholeText, WholeText] | None = None
    provenance: Provenance

    def __str__(self) -> str:
        """Two lines: what the student has left, and what that cost."""
        teacher, student = self.teacher, self.student
        return (
            f"parameters {teacher.cost.parameters:,} -> {student.cost.parameters:,}\n"
            f"perplexity {teacher.perplexity.value:.4g} -> {student.perplexity.value:.4g}, KL {self.quality.kl:.4g}"
        )


def compare(
    teacher: DecoderView,
    student: Student | DecoderView,
    batches: Sequence[Batch],
    *,
    provenance: Provenance,
    start: Sequence[int] = (),
    generated: Sequence[Generation] = (),
    timed: Speed | None = None,
    plain: Student | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: Workers = ALONE,
) -> Evaluation:
    """Measure a student against its teacher on held-out text.

    Args:
        teacher: the reference.
        student: an overlay on the teacher's view, or the view of a saved student.
        batches: text for KL and agreement; its tokens in order, padding and start tokens left out, are the perplexity's stream.
            The longest batch is the window of the perplexity, with half of it as stride, and the context that cost is counted
            at; the largest says how many windows a forward takes.
        start: the tokens that every sample of ``batches`` begins with; every window of the perplexity gets them, too.
        generated, timed: what was measured already (by :func:`~shoal.evaluate.generate.generations` and
            :func:`~shoal.evaluate.speed.speed`), kept with the rest.
        plain: the same cut without repair, whose quality is measured in the same pass.
        progress: called with (batches done, batches in all), over all passes.
        workers: who share every pass; all of them get the same figures, bit for bit those of one.
    Raises:
        ValueError: no text, different vocabularies, NaN or infinite states.
    """
    if not batches:
        raise ValueError("evaluation got no text; give at least one batch of the evaluation slice")
    stream_T = token_stream(batches, start=start)
    window = max(batch.ids_BT.shape[1] for batch in batches)
    stride = usual_stride(window, start)
    batch_size = max(1, max(batch.ids_BT.numel() for batch in batches) // window)
    n_passes = 1 if isinstance(student, Student) else 2
    n_windows = n_batches(len(stream_T), window=window, stride=stride, batch_size=batch_size, n_start=len(start))
    n_steps = len(batches) + n_passes * n_windows
    done = 0

    def step(batch: Batch) -> None:
        nonlocal done
        done += workers.size
        if progress is not None:
            progress(min(done, n_steps), n_steps)

    if progress is not None:
        progress(0, n_steps)  # The first batch may take minutes.
    sharing: dict[str, Any] = {"after_batch": step, "workers": workers}
    reading = {"window": window, "stride": stride, "start": start, "batch_size": batch_size, **sharing}
    close = closeness(teacher, student, batches, plain=plain, **sharing)
    if isinstance(student, Student):
        texts = perplexities(teacher, stream_T, students=[TEACHER, student], **reading)
        costs = [cost(teacher, context=window, student=one) for one in (TEACHER, student)]
        name = student.name
    else:
        texts = [perplexity(view, stream_T, **reading) for view in (teacher, student)]
        costs = [cost(view, context=window) for view in (teacher, student)]
        name = "student"
    both = [Figures(name=n, cost=c, perplexity=p) for n, c, p in zip(("teacher", name), costs, texts, strict=True)]
    return Evaluation(
        teacher=both[0],
        student=both[1],
        quality=close.quality,
        by_position=close.by_position,
        plain=close.plain,
        generations=tuple(generated),
        speed=timed,
        provenance=provenance,
    )


class Closeness(NamedTuple):
    """How close next-token distributions are to the teacher's, over all tokens and by position.

    Attributes:
        plain: of the student that was measured beside it; None: none was.
    """

    quality: Quality
    by_position: ByPosition
    plain: Quality | None


@torch.no_grad()
def closeness(
    teacher: DecoderView,
    student: Student | DecoderView,
    batches: Sequence[Batch],
    *,
    plain: Student | None = None,
    after_batch: Callable[[Batch], None] | None = None,
    workers: Workers = ALONE,
) -> Closeness:
    """How close a student is to its teacher, in one pass over the text that the workers share.

    Args:
        plain: a second student, an overlay on the teacher's view, whose quality is measured in the same pass.
    Raises:
        ValueError: different vocabularies, no token that can be measured, NaN or infinite states.
    """
    quality, positions, beside = QualitySums(workers), PositionSums(workers), QualitySums(workers)
    own_model = None if isinstance(student, Student) else student
    if own_model is not None:
        refuse_other_vocabulary(teacher, own_model)

    def count(blocks: Iterable[CountedBlock], batch: Batch) -> None:
        *others, found = token_figures(blocks, batch, with_overlap=True)
        quality.add(found)
        positions.add(found)
        for one in others:
            beside.add(one)

    def sink(reading: Reading, finals: list[Tensor]) -> None:
        batch, models = reading.batch, [] if own_model is None else [own_model]
        ends = [*finals, *(end_of(model, batch) for model in models)]
        count(head_blocks([teacher] * len(finals) + models, ends, predicts(batch.ids_BT, batch.mask_BT)), batch)

    overlays = [one for one in (plain, student) if isinstance(one, Student)]
    if overlays:
        run_pass(teacher, batches, students=[TEACHER, *overlays], sink=sink, after_batch=after_batch, workers=workers)
    else:
        for batch in workers.share(batches):
            count(model_blocks([teacher, *filter(None, [own_model])], batch), batch)
            if after_batch is not None:
                after_batch(batch)
    return Closeness(quality.result(), positions.result(), None if plain is None else beside.result())


def token_stream(batches: Sequence[Batch], *, start: Sequence[int] = ()) -> Tensor:
    """(T,) the tokens of the text of all samples, in order: neither padding nor the ``start`` tokens of a sample."""
    rows = []
    for batch in batches:
        lengths = [batch.ids_BT.shape[1]] * len(batch.ids_BT) if batch.mask_BT is None else batch.mask_BT.sum(1).tolist()
        for row_T, length in zip(batch.ids_BT.cpu(), lengths, strict=True):
            rows.append(row_T[n_started(row_T, start) : int(length)])
    return torch.cat(rows)


def n_started(row_T: Tensor, start: Sequence[int]) -> int:
    """How many of a sample's first tokens are the start tokens: all of them or none."""
    return len(start) if row_T[: len(start)].tolist() == list(start) else 0


def refuse_other_vocabulary(teacher: DecoderView, student: DecoderView) -> None:
    """Raises ValueError when the logits of two models have different numbers of tokens."""
    ours, theirs = (view.shapes.get_output_embeddings().weight.shape[0] for view in (teacher, student))
    if ours != theirs:
        raise ValueError(
            f"the teacher has {ours} tokens, the student {theirs}; they can be compared only with one vocabulary: give the "
            f"teacher the student was made from, or take added tokens out (student.resize_token_embeddings({ours}))"
        )
