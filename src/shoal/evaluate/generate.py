"""Greedy continuations of the same prompts by teacher and student, side by side.

Both are real models with their key/value cache, through ``model.generate``: this is what a user of the checkpoint gets.
Greedy means the most probable token at every step; sampling, beams and repetition penalties that a checkpoint's
``generation_config`` may ask for are off, because they hide or invent differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.types import Record


class Generation(Record):
    """One prompt continued twice.

    Attributes:
        n_agreed: new tokens before the first difference; ``n_tokens`` when there is none.
        n_tokens: new tokens of the longer continuation (each ends at its end-of-text token or at the limit).
    """

    prompt: str
    teacher: str
    student: str
    n_agreed: int
    n_tokens: int

    @property
    def is_identical(self) -> bool:
        return self.n_agreed == self.n_tokens


def generations(
    teacher: Any, student: Any, *, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 48
) -> tuple[Generation, ...]:
    """Continue every prompt greedily with two models.

    Args:
        teacher, student: causal language models of transformers with one vocabulary.
        tokenizer: their tokenizer; its own special tokens are added as in any use of the checkpoint.
        max_new_tokens: limit of each continuation.
    Raises:
        ValueError: a prompt without a token, or a limit below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} needs at least 1")
    return tuple(_side_by_side(teacher, student, tokenizer, prompt, max_new_tokens) for prompt in prompts)


def greedy_tokens(model: Any, prompt_T: Tensor, *, max_new_tokens: int) -> list[int]:
    """The new tokens of a greedy continuation of one prompt of T tokens, an end-of-text token included if it came."""
    from transformers import GenerationConfig

    own = model.generation_config
    end = own.eos_token_id
    first_end = end[0] if isinstance(end, (list, tuple)) else end
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else first_end,
    )
    ids_BT = prompt_T[None].to(model.get_input_embeddings().weight.device)
    with torch.inference_mode():
        out_BT = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=config)
    return out_BT[0, ids_BT.shape[1] :].tolist()


def n_equal_at_start(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common start of two sequences."""
    same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        same += 1
    return same


def _side_by_side(teacher: Any, student: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> Generation:
    prompt_T = torch.tensor(tokenizer(prompt)["input_ids"], dtype=torch.long)
    if len(prompt_T) == 0:
        raise ValueError(f"the prompt {prompt!r} has no token; give at least one word to continue")
    ours, theirs = (greedy_tokens(model, prompt_T, max_new_tokens=max_new_tokens) for model in (teacher, student))
    return Generation(
        prompt=prompt,
        teacher=tokenizer.decode(ours, skip_special_tokens=True),
        student=tokenizer.decode(theirs, skip_special_tokens=True),
        n_agreed=n_equal_at_start(ours, theirs),
        n_tokens=max(len(ours), len(theirs)),
    )
