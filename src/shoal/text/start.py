"""The start tokens: what a tokenizer puts in front of a text, such as the BOS of Llama and Gemma or ``[gMASK]<sop>`` of GLM.

A model that was trained with a start token is never run without it, and parks attention there: a Gemma read without its BOS
has a perplexity of hundreds. So every block that Shoal cuts out of a text begins as the tokenizer would begin it.
"""

from typing import Any

PROBE = "a"


def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer adds in front of a text; empty where it adds none.

    The ids are what stands before the text's own ids when special tokens are asked for: whether a tokenizer *has* a BOS
    says nothing about whether it adds it.
    """
    plain, whole = (list(tokenizer(PROBE, add_special_tokens=asked)["input_ids"]) for asked in (False, True))
    # From the back, because a text that the tokenizer does not know may look like a start token.
    for at in reversed(range(len(whole) - len(plain) + 1)):
        if plain and whole[at : at + len(plain)] == plain:
            return tuple(whole[:at])
    return ()
