"""Perplexity over all of a text as papers state it.

The way of GPTQ, SparseGPT, Wanda, SliceGPT and those that compare with them: the text is tokenised in one piece, with the start
token that the tokenizer puts in front of it, once; the tokens are cut into blocks of W that do not overlap; what does not fill
a block is left out; every block is read on its own, its first token is not scored, and the perplexity is exp of the mean
negative log-likelihood over all scored tokens. For a model that needs its start token only the first block has one.

The sliding window of :mod:`shoal.evaluate.perplexity` gives every token but the first few at least half of a window of context,
so it is lower on the same text.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.evaluate.perplexity import Perplexity, n_batches, perplexity
from shoal.words.records import Record
from shoal.words.types import Batch


class WholeText(Record):
    """One model on all of a text.

    Attributes:
        n_tokens: of the text, start tokens left out.
        n_characters: of the text.
        blocks: the perplexity as papers state it.
    """

    n_tokens: int
    n_characters: int
    blocks: Perplexity

    @property
    def how(self) -> str:
        """How papers state it, for people."""
        return f"blocks of {self.blocks.window}, no overlap, {self.blocks.n_tokens:,} scored tokens"


def papers_stream(ids_T: Tensor, start: Sequence[int], *, length: int) -> Tensor:
    """(N * length,) the tokens that the blocks of papers read: start tokens once, and whole blocks alone.

    Raises:
        ValueError: less text than one block.
    """
    spelled = ids_T[: len(start)].tolist() == list(start)  # A chat template spells them.
    stream_T = torch.cat([torch.tensor([] if spelled else list(start), dtype=torch.long), ids_T.long()])
    n_read = len(stream_T) // length * length
    if n_read == 0:
        raise ValueError(
            f"the whole text is {len(ids_T):,} tokens, less than one block of {length:,}; give more text, or --length "
            f"{max(2, len(ids_T))} or less"
        )
    return stream_T[:n_read]


def perplexity_of_blocks(
    view: DecoderView,
    stream_T: Tensor,
    *,
    length: int,
    batch_size: int = 8,
    step: Callable[[int, int], None] | None = None,
    workers: Workers = ALONE,
) -> Perplexity:
    """The perplexity as papers state it, over a stream of :func:`papers_stream`.

    Args:
        batch_size: blocks per forward; it does not enter the definition.
        step: called with (forwards done, forwards in all).
    Raises:
        ValueError: NaN or infinite states.
    """
    total, done = n_batches(len(stream_T), window=length, stride=length, batch_size=batch_size), 0

    def count(batch: Batch) -> None:
        nonlocal done
        done += workers.size
        if step is not None:
            step(min(done, total), total)

    return perplexity(view, stream_T, window=length, stride=length, batch_size=batch_size, after_batch=count, workers=workers)
