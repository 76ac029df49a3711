"""The start tokens: what a tokenizer puts in front of a text, such as the BOS of Llama and Gemma or ``[gMASK]<sop>`` of GLM.

A model that was trained with a start token is never run without it, and parks attention there: a Gemma read without its BOS
has a perplexity of hundreds. So every block that Shoal cuts out of a text begins as the tokenizer would begin it. What some
tokenizers put *behind* a text (an EOS, a ``[SEP]``) says that it is over, so it never stands behind what a model is to go on
from.
"""

from collections.abc import Iterator
from typing import Any

PROBE = "a"
MOST_PROBES = 64


def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer adds in front of a text; empty where it adds none.

    The ids are what stands before the text's own ids when special tokens are asked for: whether a tokenizer *has* a BOS
    says nothing about whether it adds it.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    for probe in _probes(tokenizer, special):
        try:
            plain, whole = (_ids(tokenizer, probe, special=asked) for asked in (False, True))
        except Exception:  # A vocabulary of words without an unknown token raises a bare Exception on a word that it lacks.
            continue
        if plain and not special & set(plain):
            return tuple(whole[: _place(plain, whole)])
    return ()


def begun(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text as the tokenizer begins it: start tokens once, where the text spells them, too, and nothing behind."""
    start, ids = list(start_tokens(tokenizer)), _ids(tokenizer, text, special=False)
    return ids if ids[: len(start)] == start else start + ids


def _probes(tokenizer: Any, special: set[int]) -> Iterator[str]:
    """A letter, then words of the vocabulary: a text that a tokenizer does not know may have no token, or a special one."""
    yield PROBE
    ids = sorted(set(tokenizer.get_vocab().values()) - special) if hasattr(tokenizer, "get_vocab") else []
    yield from (tokenizer.decode([one]) for one in ids[:MOST_PROBES])


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _place(plain: list[int], whole: list[int]) -> int:
    """Where a text's own ids begin among those with special tokens; 0 where they are not there."""
    return next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
