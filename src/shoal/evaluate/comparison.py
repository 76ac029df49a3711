"""Any number of models side by side: the same text, the same items, the first one as the reference.

Perplexity per token compares models of one tokenizer only. Across tokenizers stand *bits per byte*: the negative
log-likelihood of the text in bits, divided by its bytes in UTF-8. Every token of the text is scored, given what fits the
window, but the first where the tokenizer has no start token for it to follow; special tokens count as tokens and have no
bytes. KL, acceptance and agreement are with the first model, where the vocabulary is the same.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.evaluate.evaluation import Figures
from shoal.evaluate.perplexity import Perplexity
from shoal.evaluate.positions import ByPosition
from shoal.evaluate.tasks.benchmark import Benchmark, TaskFigures
from shoal.measure.oracle import Quality
from shoal.words.records import Provenance, Record


class Compared(Record):
    """One of the models.

    Attributes:
        figures: perplexity is per token of the model's own tokenizer.
        quality, by_position: against the first model; None for itself, and where the vocabulary is another.
        why_not: why there is no KL, in one sentence.
        tasks: its own accuracy; ``against_first``: retained, stability and flips.
    """

    figures: Figures
    bits_per_byte: float
    quality: Quality | None = None
    by_position: ByPosition | None = None
    why_not: str | None = None
    tasks: tuple[TaskFigures, ...] = ()
    against_first: Benchmark | None = None

    def __str__(self) -> str:
        cost, kl = self.figures.cost, "" if self.quality is None else f", KL {self.quality.kl:.4g}"
        said = f"{cost.layers} layers, {cost.parameters:,} parameters, {self.bits_per_byte:.4g} bits per byte{kl}"
        return f"{self.figures.name}: {said}{f'; {self.why_not}' if self.why_not else ''}"


class Comparison(Record):
    """The models in the order given. ``provenance``: the text, and the first model; ``n_bytes``: of the text."""

    models: tuple[Compared, ...]
    n_bytes: int
    provenance: Provenance

    def __str__(self) -> str:
        """A line for each model."""
        return "\n".join([*map(str, self.models), f"on {self.provenance.text_said}"])


def bits_per_byte(found: Perplexity, n_bytes: int) -> float:
    """Bits of the scored tokens per byte of the text."""
    return found.nll * found.n_tokens / (math.log(2) * n_bytes)


def other_tokenizer(first: Any, other: Any) -> str | None:
    """What makes the tokens of two models different ones, or None where they are the same.

    Tokens that one of them has behind the last of the other, such as a padding token that was added, change no text's tokens.
    """
    ours, theirs = first.get_vocab(), other.get_vocab()
    fewer, more = sorted((ours, theirs), key=len)
    last = max(fewer.values(), default=-1)
    if fewer.items() <= more.items() and all(number > last for name, number in more.items() if name not in fewer):
        return None
    return f"its tokenizer is another ({len(ours.items() & theirs.items()):,} of {len(ours):,} tokens are the same)"


def encoded(texts: Sequence[str], tokenizer: Any) -> Tensor:
    """(T,) tokens of all texts in order; start tokens are no part of the text (every window of the perplexity gets them)."""
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return torch.tensor(ids, dtype=torch.long)
