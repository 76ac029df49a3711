"""Strided perplexity of a long text: exp of the mean negative log-likelihood per token, in a sliding window.

Definition. The text is one stream of T tokens, 0-based. Window k reads the tokens ``[k*S, min(k*S + W, T))`` for window W and
stride S, up to the first window that reaches the end. A window scores the tokens it reads that no earlier window read, each
given every token before it in the window. So each token is scored exactly once; tokens after the first window are given at
least ``W - S`` tokens of context; the first token of the text has none and is not scored. With ``S = W`` the windows are
disjoint blocks and the first token of every block is not scored (the way of GPTQ and most pruning papers).
Where the tokenizer begins a text with start tokens, every window begins with them, and they count into W: of P start tokens,
window k reads ``[k*S, min(k*S + W - P, T))`` of the text, S is at most W - P, and the first token of the text is scored, too.
Where the text spells the start tokens at the beginning of a window (chat templates do), they are not doubled.
``nll`` is the sum of ``-ln p(token | context)`` over scored tokens divided by their number: nats per token. Perplexity is
``exp(nll)``. Logarithms in fp32, sums in fp64. A start token is context and is never scored.

Shapes: B windows, T tokens, W window, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.measure.counted import head_blocks
from shoal.measure.divergence import token_nll
from shoal.words.numbers import saturating_exp
from shoal.words.records import Record
from shoal.words.types import Batch


class Perplexity(Record):
    """``value`` = exp(``nll``); ``nll`` in nats per token over ``n_tokens`` scored tokens.

    Attributes:
        start: the tokens that every window begins with; they count into ``window``.
    """

    value: float
    nll: float
    n_tokens: int
    window: int
    stride: int
    start: tuple[int, ...] = ()

    @property
    def how(self) -> str:
        """How it was measured, for people."""
        n = len(self.start)
        begins = "" if n == 0 else " (its first is the start token)" if n == 1 else f" (its first {n} are the start tokens)"
        return f"window {self.window}{begins}, stride {self.stride}, {self.n_tokens:,} scored tokens"


@dataclass(frozen=True)
class Window:
    """Reads tokens ``[start, stop)`` of the text and scores ``[first, stop)``."""

    start: int
    first: int
    stop: int


def windows(n_tokens: int, *, window: int, stride: int, n_start: int = 0) -> Iterator[Window]:
    """The windows over a text of ``n_tokens`` tokens (definition at the top of this file).

    Args:
        n_start: start tokens in front of every window, P of the definition.
    Raises:
        ValueError: stride outside 1..window - P, window below 2 or without room for text, or fewer than 2 tokens.
    """
    if window < 2:
        raise ValueError(f"window={window} needs at least 2 tokens: one of context and one to score")
    room = window - n_start
    if room < 1:
        raise ValueError(f"window={window} needs more than the {n_start} start tokens that the tokenizer adds")
    if not 1 <= stride <= room:
        beside = f" beside {n_start} start token{'s' * (n_start > 1)}" if n_start else ""
        raise ValueError(f"stride={stride} needs 1..{room} (the window{beside}); the usual choices are that and half of it")
    if n_tokens < 2:
        raise ValueError(f"perplexity needs a text of at least 2 tokens, got {n_tokens}")
    start = done = 0
    while done < n_tokens:
        stop = min(start + room, n_tokens)
        first = max(done, start if n_start else start + 1)
        if first < stop:
            yield Window(start, first, stop)
        start, done = start + stride, stop


def perplexity(
    view: DecoderView,
    ids_T: Tensor,
    *,
    window: int,
    stride: int,
    start: Sequence[int] = (),
    student: Student = TEACHER,
    batch_size: int = 8,
    after_batch: Callable[[Batch], None] | None = None,
    workers: Workers = ALONE,
) -> Perplexity:
    """Strided perplexity of a student (the teacher unless given) on one long text.

    Args:
        ids_T: (T,) token ids of the text, any integer dtype, without start tokens.
        window, stride: W and S of the definition above, in tokens.
        start: the tokens that the tokenizer begins a text with (:func:`shoal.text.start.start_tokens`).
        batch_size: windows per forward; it does not enter the definition.
        after_batch: called when a batch is done, for progress.
        workers: who share the windows; all of them get the result of all windows, bit for bit that of one.
    Raises:
        ValueError: impossible window or stride, a text that is not one row of at least 2 tokens, NaN or infinite states.
    """
    return perplexities(
        view,
        ids_T,
        window=window,
        stride=stride,
        start=start,
        students=[student],
        batch_size=batch_size,
        after_batch=after_batch,
        workers=workers,
    )[0]


@torch.no_grad()
def perplexities(
    view: DecoderView,
    ids_T: Tensor,
    *,
    window: int,
    stride: int,
    start: Sequence[int] = (),
    students: Sequence[Student],
    batch_size: int = 8,
    after_batch: Callable[[Batch], None] | None = None,
    workers: Workers = ALONE,
) -> list[Perplexity]:
    """As :func:`perplexity`, for many students of one view in one pass that shares their common layers."""
    if ids_T.ndim != 1:
        raise ValueError(f"perplexity reads one row of token ids, got the shape {tuple(ids_T.shape)}; flatten the text first")
    ids_T, start_P = ids_T.long(), torch.tensor(list(start), dtype=torch.long)
    groups = list(_batched(windows(len(ids_T), window=window, stride=stride, n_start=len(start_P)), batch_size))
    mine: list[tuple[int, list[float]]] = []  # Each batch has its tokens scored and every student's sum.

    def add(reading: Reading, finals: list[Tensor]) -> None:
        group = groups[reading.batch.index]
        scored_BT = _scored(group, [n_added(one) for one in group], n_start=len(start_P)).to(view.device)
        nll = _nll_sums(view, finals, reading.batch.ids_BT, scored_BT)
        mine.append((int(scored_BT.sum()), nll))

    def n_added(one: Window) -> int:
        return 0 if torch.equal(ids_T[one.start : one.start + len(start_P)], start_P) else len(start_P)

    def row_of(one: Window) -> Tensor:
        if n_added(one) or not len(start_P):
            return torch.cat([start_P, ids_T[one.start : one.stop]])
        # The place of start tokens that are not doubled goes to tokens behind the window, which nothing before them sees.
        behind_T = torch.cat([ids_T[one.stop : one.stop + len(start_P)], start_P])[: len(start_P)]
        return torch.cat([ids_T[one.start : one.stop], behind_T])

    def rows_of(group: Sequence[Window]) -> Tensor:
        return torch.stack([row_of(one) for one in group])

    batches = (Batch(rows_of(group), index=i) for i, group in enumerate(groups))
    run_pass(view, batches, students=students, sink=add, after_batch=after_batch, workers=workers)
    every = workers.gather(mine)
    n_tokens = sum(n for n, _ in every)
    if any(math.isnan(nll) for _, sums in every for nll in sums):
        raise ValueError("the logits are NaN on this text: the weights are damaged, or the dtype is too small; use float32")
    means = [sum(nll[member] for _, nll in every) / n_tokens for member in range(len(students))]
    return [
        Perplexity(
            value=saturating_exp(nll), nll=nll, n_tokens=n_tokens, window=window, stride=stride, start=tuple(start_P.tolist())
        )
        for nll in means
    ]


def n_batches(n_tokens: int, *, window: int, stride: int, batch_size: int, n_start: int = 0) -> int:
    """Forwards that :func:`perplexities` needs for a text of ``n_tokens`` tokens."""
    return sum(1 for _ in _batched(windows(n_tokens, window=window, stride=stride, n_start=n_start), batch_size))


def usual_stride(window: int, start: Sequence[int]) -> int:
    """Half of the window, or what the start tokens leave of it where that is less."""
    return max(1, min(window // 2, window - len(start)))


def _batched(every: Iterator[Window], batch_size: int) -> Iterator[list[Window]]:
    """Runs of at most ``batch_size`` windows of one length; only the last window can be shorter than the others."""
    group: list[Window] = []
    for one in every:
        if group and (len(group) == batch_size or one.stop - one.start != group[0].stop - group[0].start):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _scored(group: Sequence[Window], n_added: Sequence[int], *, n_start: int) -> Tensor:
    """(B, T-1) bool for windows of T tokens, start tokens included: True where the *next* token is scored.

    Args:
        n_added: start tokens in front of each window's text, ``n_start`` or, where the text spells them, none.
    """
    offsets = torch.arange(1, n_start + group[0].stop - group[0].start)
    reads = [(n + one.first - one.start, n + one.stop - one.start) for one, n in zip(group, n_added, strict=True)]
    return torch.stack([(offsets >= first) & (offsets < stop) for first, stop in reads])


def _nll_sums(view: DecoderView, ends_BTD: Sequence[Tensor], ids_BT: Tensor, scored_BT: Tensor) -> list[float]:
    """Per student the sum over scored tokens of -ln p(token), fp32 logarithms, fp64 sum."""
    next_N = ids_BT[:, 1:][scored_BT]
    sums = [0.0] * len(ends_BTD)
    for block, logits in head_blocks([view] * len(ends_BTD), ends_BTD, scored_BT):
        for member, logits_nV in enumerate(logits):
            sums[member] += token_nll(logits_nV, next_N[block]).double().sum().item()
    return sums
