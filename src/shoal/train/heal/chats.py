"""Chats as training rows: one conversation per sample, and only what the assistant says is predicted.

A conversation is written by the tokenizer's own template. An answer is found by writing the messages before it, with the mark
that asks for an answer, and the messages up to it: the tokens in between are the answer with its end mark.
Shapes: N samples, T positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from shoal.text.chat import as_taken, rendered
from shoal.text.conversations import conversations
from shoal.text.rows import Turn
from shoal.text.slices import content_digest, order_key, slice_of
from shoal.text.start import begun
from shoal.train.heal.text_rows import TextRows
from shoal.words.records import stable_hash


def answer_mask(tokenizer: Any, messages: Sequence[Turn], where: str) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant says.

    Args:
        messages: as the template takes them (:func:`shoal.text.chat.as_taken`).
    Raises:
        ValueError: there is no answer; the template refuses the messages, or writes the beginning of a conversation otherwise
            when more follows, so that answers cannot be told apart.
    """

    def written(upto: int, *, asks: bool) -> list[int]:
        try:
            return begun(tokenizer, rendered(tokenizer, list(messages[:upto]), add_generation_prompt=asks))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    ids = written(len(messages), asks=False)
    answers = [False] * len(ids)
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before, behind = written(i, asks=True), written(i + 1, asks=False)
        if ids[: len(behind)] != behind or behind[: len(before)] != before:
            raise ValueError(
                f"{where}: the chat template rewrites what came before an answer, so answers cannot be told apart; "
                "train on the whole conversation (--predict all)"
            )
        answers[len(before) : len(behind)] = [True] * (len(behind) - len(before))
    if not any(answers):
        raise ValueError(f"{where}: no message has the role assistant; give conversations with answers")
    return ids, answers


def chat_rows(
    sources: Sequence[str], tokenizer: Any, slice_name: str, *, n: int, length: int, field: str | None = None, seed: int = 0
) -> TextRows:
    """n conversations of one slice, each cut to ``length`` tokens; those without an answer in that reach are left out.

    Which slice a conversation is in depends on the text that the template makes of it, as where conversations are read as
    documents: none that is trained on is in a text that something is measured or chosen by.

    Args:
        field: column of the rows that holds the turns; found unless given.
    Raises:
        ValueError: a source without turns, no chat template, too few conversations.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("answers can be told apart only with a chat template, and the tokenizer has none; use --predict all")
    chosen = []
    for where, turns in conversations(sources, field):
        try:
            messages, text = as_taken(tokenizer, turns)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        digest = content_digest(text)
        if slice_of(digest) == slice_name:
            chosen.append((order_key(digest, seed), where, messages))
    found: list[tuple[list[int], list[bool]]] = []
    for _, where, messages in sorted(chosen, key=lambda one: one[0]):
        ids, answers = answer_mask(tokenizer, messages, where)
        if any(answers[1:length]):
            found.append((ids[:length], answers[:length]))
        if len(found) == n:
            break
    if len(found) < min(n, 2):
        raise ValueError(f"{' and '.join(sources)}: its slice {slice_name!r} has {len(found)} conversations; give more of them")
    ids_NT, mask_NT = np.zeros((len(found), length), dtype=np.int64), np.zeros((len(found), length), dtype=bool)
    for i, (ids, answers) in enumerate(found):
        ids_NT[i, : len(ids)], mask_NT[i, : len(ids)] = ids, answers
    lengths_N = torch.tensor([len(ids) for ids, _ in found])
    identity = stable_hash(ids_NT.tobytes(), mask_NT.tobytes(), length)
    return TextRows(torch.from_numpy(ids_NT), lengths_N, torch.from_numpy(mask_NT), " and ".join(sources), identity)
