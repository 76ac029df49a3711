"""Logits only of the tokens that are counted, and only some of them at a time.

The logits of a whole batch are by far its largest tensor (V / D times the hidden states), and nobody looks at those of padding,
of last tokens, and of tokens that a sliding window reads without scoring them.
Shapes: B samples, T positions, N counted tokens, n of them in a block, D hidden size, V vocabulary.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shoal.engine.view import DecoderView, Reading
from shoal.measure.divergence import predicts
from shoal.words.types import Batch

CountedBlock = tuple[slice, list[Tensor]]
"""Which of the counted tokens, and their logits (n, V) for every stream."""

TOKENS_PER_HEAD = 256  # On a CPU the output matrix is read once per block, and the logits of a block are some tens of MB.
ELSEWHERE = 4096  # A card needs large products.


def head_blocks(views: Sequence[DecoderView], ends_BTD: Sequence[Tensor], where_BT: Tensor) -> Iterator[CountedBlock]:
    """Logits of the chosen tokens, block by block, in order.

    Args:
        views: whose heads are used, one for each of ``ends_BTD``.
        ends_BTD: boundary L of some streams, (B, T, D). Equal objects of one view give one tensor of logits.
        where_BT: bool (B, T'), T' <= T: the tokens to look at.
    Yields: blocks; one without tokens where none is chosen.
    """
    n_positions = where_BT.shape[1]
    chosen = [end_BTD[:, :n_positions][where_BT.to(end_BTD.device)] for end_BTD in ends_BTD]
    size = tokens_per_head(views[0])
    if not len(chosen[0]):
        yield slice(0, 0), [end_ND.new_zeros(0, 1) for end_ND in chosen]
    for start in range(0, len(chosen[0]), size):
        block = slice(start, min(start + size, len(chosen[0])))
        made: dict[tuple[int, int], Tensor] = {}
        logits = []
        for view, end_BTD, end_ND in zip(views, ends_BTD, chosen, strict=True):
            key = (id(view), id(end_BTD))
            if key not in made:
                made[key] = head_of(view, end_ND[block])
            logits.append(made[key])
        yield block, logits


@torch.no_grad()
def model_blocks(views: Sequence[DecoderView], batch: Batch) -> Iterator[CountedBlock]:
    """As :func:`head_blocks`, for whole models: the logits of every real token that is followed by one."""
    ends = [end_of(view, batch) for view in views]
    yield from head_blocks(views, ends, predicts(batch.ids_BT, batch.mask_BT))


@torch.no_grad()
def end_of(view: DecoderView, batch: Batch) -> Tensor:
    """(B, T, D) boundary L of a whole model on a batch; one boundary at a time is in memory."""
    ((_, end_BTD),) = deque(view.stream(view.read(batch)), maxlen=1)
    return end_BTD


def tokens_per_head(view: DecoderView) -> int:
    """Tokens whose logits are in memory at once."""
    return TOKENS_PER_HEAD if view.device.type == "cpu" else ELSEWHERE


def head_of(view: DecoderView, h_ND: Tensor) -> Tensor:
    """Logits (N, V) of single tokens at boundary L: no head looks from one token to another."""
    return view.head(*_as_samples(view, h_ND))[:, 0]


def head_of_with_grad(view: DecoderView, h_ND: Tensor) -> Tensor:
    """As :func:`head_of`, differentiable in ``h``."""
    return view.head_with_grad(*_as_samples(view, h_ND))[:, 0]


def _as_samples(view: DecoderView, h_ND: Tensor) -> tuple[Tensor, Reading]:
    one_each = Batch(torch.zeros(len(h_ND), 1, dtype=torch.long, device=view.device))
    return h_ND[:, None].to(view.device), Reading(one_each, h_ND, ())
