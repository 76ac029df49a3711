"""Greedy continuations of the same prompts by teacher and student, side by side.

Both are real models with their key/value cache, through ``model.generate``: this is what a user of the checkpoint gets.
Greedy means the most probable token at every step; sampling, beams and repetition penalties that a checkpoint's
``generation_config`` may ask for are off, because they hide or invent differences.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.checkpoint.in_memory import cut
from shoal.engine.student import Student
from shoal.engine.told_tokens import told_tokens
from shoal.engine.view import DecoderView
from shoal.text.chat import asked
from shoal.text.start import begun
from shoal.words.records import Record


class Generation(Record):
    """One prompt continued twice.

    Attributes:
        n_agreed: new tokens before the first difference; ``n_tokens`` when there is none.
        n_tokens: new tokens of the longer continuation (each ends at its end-of-text token or at the limit).
        is_chat: the prompt was a user's turn, and both answered it through the model's chat template.
    """

    prompt: str
    teacher: str
    student: str
    n_agreed: int
    n_tokens: int
    is_chat: bool = False

    @property
    def is_identical(self) -> bool:
        return self.n_agreed == self.n_tokens


def generations(
    teacher: Any,
    student: Any,
    *,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 48,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Generation, ...]:
    """Continue every prompt greedily with two models.

    Args:
        teacher, student: causal language models of transformers with one vocabulary.
        tokenizer: their tokenizer; its own special tokens are added as in any use of the checkpoint. Where it has a chat
            template each prompt is a user's turn, as a chat model is used.
        max_new_tokens: limit of each continuation.
        progress: called with (prompts done, prompts in all).
    Raises:
        ValueError: a prompt without a token, or a limit below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} needs at least 1")
    found = []
    for prompt in prompts:
        found.append(_side_by_side(teacher, student, tokenizer, prompt, max_new_tokens))
        if progress is not None:
            progress(len(found), len(prompts))
    return tuple(found)


def model_of(view: DecoderView, student: Student) -> Any:
    """The model that ``generate`` can run: the view's own for the teacher, else a cut of it that shares its weights.

    Raises:
        ValueError: layers are read from disk, or the student cannot be a stock model.
    """
    if view.residency.layer_major:
        raise ValueError("text is written token by token, which needs all layers in memory; use --resident all")
    is_whole = student.is_removal and not student.removed
    return view.model if is_whole else cut(view, student)


def greedy_tokens(model: Any, prompt_T: Tensor, *, max_new_tokens: int) -> list[int]:
    """The new tokens of a greedy continuation of one prompt of T tokens, an end-of-text token included if it came."""
    ids_BT = prompt_T[None].to(model.get_input_embeddings().weight.device)
    return _generate(model, ids_BT, torch.ones_like(ids_BT), max_new_tokens=max_new_tokens)[0].tolist()


def greedy_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    tokens_per_batch: int = 4096,
) -> Iterator[tuple[int, str]]:
    """Greedy continuations of many prompts, batched with padding on the left, longest first.

    Args:
        prompts: token ids of each prompt, at least one.
        stop: a row is done when its text holds one of these; the text still has it, and perhaps more after it.
        tokens_per_batch: prompts and new tokens of one batch, padding included; at least one prompt.
    Yields:
        (index of the prompt, text without special tokens), in the order in which they are done.
    """
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    while order:
        n_columns = len(prompts[order[0]]) + max_new_tokens
        n_rows = max(1, tokens_per_batch // n_columns)
        group, order = order[:n_rows], order[n_rows:]
        longest = len(prompts[group[0]])
        ids_BT = torch.zeros(len(group), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, index in enumerate(group):
            at = longest - len(prompts[index])
            ids_BT[row, at:], mask_BT[row, at:] = torch.tensor(prompts[index]), 1
        new_BT = _generate(
            model, ids_BT.to(device), mask_BT.to(device), max_new_tokens=max_new_tokens, stop=stop, tokenizer=tokenizer
        )
        for index, new in zip(group, new_BT.tolist(), strict=True):
            yield index, tokenizer.decode(_until_end(new, model), skip_special_tokens=True)


def _until_end(tokens: list[int], model: Any) -> list[int]:
    """Without what a finished row was filled with while the others went on."""
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, (list, tuple)) else {end}
    return next((tokens[:at] for at, token in enumerate(tokens) if token in ends), tokens)


@torch.inference_mode()
def _generate(
    model: Any,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    tokenizer: Any | None = None,
) -> Tensor:
    """(B, new) tokens by ``model.generate``, cached and greedy; rows that are done are filled with the padding token."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    own = model.generation_config
    end = own.eos_token_id
    first_end = end[0] if isinstance(end, (list, tuple)) else end
    padding = own.pad_token_id if own.pad_token_id is not None else first_end
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=padding if padding is not None or not stop else 0,
    )
    n_prompt = ids_BT.shape[1]

    def is_done(so_far_BT: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        # A token is at least one byte and a character at most four bytes, so a stop string that ends with the newest token
        # begins within the last 4 x len(stop) tokens; only these are decoded.
        tails = tokenizer.batch_decode(so_far_BT[:, n_prompt:][:, -4 * longest_stop :])  # type: ignore[union-attr]
        return torch.tensor([any(one in text for one in stop) for text in tails], device=so_far_BT.device)

    def refuse_nan(so_far_BT: Tensor, scores_BV: Tensor) -> Tensor:
        if bool(scores_BV.isnan().any()):  # The arg-max of NaN logits is a token like any other, so it has to be refused here.
            raise ValueError("the model's logits are NaN, so it writes nothing; use another --dtype, or check its weights")
        return scores_BV

    longest_stop = max(map(len, stop), default=0)
    out_BT: Tensor = model.generate(
        ids_BT,
        attention_mask=mask_BT,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([told_tokens(n_prompt, max_new_tokens), *([is_done] if stop else [])]),
        logits_processor=LogitsProcessorList([refuse_nan]),
    )
    return out_BT[:, n_prompt:]


def _side_by_side(teacher: Any, student: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> Generation:
    window = getattr(teacher.config.get_text_config(decoder=True), "max_position_embeddings", None)
    turn = asked(tokenizer, prompt) if prompt else None
    ids = begun(tokenizer, prompt if turn is None else turn)
    if turn is not None and window is not None and len(ids) + max_new_tokens > window:  # A template may exceed a window.
        turn, ids = None, begun(tokenizer, prompt)
    prompt_T = torch.tensor(ids, dtype=torch.long)
    if len(prompt_T) == 0:
        raise ValueError(f"the prompt {prompt!r} has no token; give at least one word to continue")
    ours, theirs = (greedy_tokens(model, prompt_T, max_new_tokens=max_new_tokens) for model in (teacher, student))
    return Generation(
        prompt=prompt,
        teacher=tokenizer.decode(ours, skip_special_tokens=True),
        student=tokenizer.decode(theirs, skip_special_tokens=True),
        n_agreed=len(os.path.commonprefix([ours, theirs])),
        n_tokens=max(len(ours), len(theirs)),
        is_chat=turn is not None,
    )
