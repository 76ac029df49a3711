"""Chats that a chat model has with itself, to be given to ``--text``: for when no conversations are at hand.

The chat template is written up to where a user's words begin, and the model samples what a user says; then it answers (Magpie,
arXiv 2406.08464). Questions may come from given conversations instead. A repair and a healing on such chats see the model at
what it is used for, which no plain text shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shoal.engine.opening import Opening
from shoal.engine.told_tokens import told_tokens
from shoal.recipes.recipe import Recipe
from shoal.run.job import open_inputs
from shoal.run.own_text import UnfinishedFile, WrittenFile
from shoal.text.chat import asked_by, chat_of
from shoal.text.start import begun
from shoal.words.progress import tell
from shoal.words.records import Record, stable_hash

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.text.rows import Turn

GROUP = 32
MOST_TRIED = 4  # So many times the chats that are asked for are begun at most; some of them do not end.
QUESTION_SHARE = 4  # A question takes at most this part of a chat's length.
MARK = "The words of a user."


class ChatsSoFar(Record):
    """What a killed run goes on from: the chats that ended, of so many groups, and how many tokens each of them has."""

    key: str = ""
    n_groups: int = 0
    n_tokens: tuple[int, ...] = ()
    rows: tuple[tuple[dict[str, str], ...], ...] = ()


def write_own_chats(
    recipe: Recipe, out: Path, *, n: int, temperature: float = 1.0, opening: Opening = Opening()
) -> WrittenFile:
    """Let ``recipe.model`` write ``n`` chats of one question and one answer, each at most the recipe's length.

    A chat whose question or answer does not end within that is left out, and another is begun, ``4 n`` at most. What was
    written stays in ``out`` with ``.part`` behind its name until all of it is there, so a killed run goes on.

    Args:
        recipe: where its text is given, its conversations lend the turns before their first answer; else the model asks, too.
            Its length and seed hold.
        out: a new file that ends in ``.jsonl``.
        temperature: of sampling; 1 is the model's own distribution.
    Raises:
        ValueError: the model has no chat template, or none of its chats ends; the file is there or is named otherwise; the text
            holds no conversations; and everything that opening the model can meet.
    """
    unfinished = UnfinishedFile(out)
    inputs = open_inputs(recipe, opening.in_memory())
    if inputs.corpus is None:
        raise ValueError("chats are written by one process; start it without a launcher")
    speaker = Speaker(inputs.view.model, inputs.opened.need_tokenizer(), inputs.length, temperature)
    sources = list(recipe.text.sources)
    key = stable_hash(inputs.model_key, sources, recipe.text.field, inputs.length, temperature, recipe.seed)
    state, record = ChatsSoFar(key=key), unfinished.part / "written.json"
    if record.exists() and (found := ChatsSoFar.load(record)).key == key:
        state = found
    tell("write", len(state.rows), n)
    questions = _asked(sources, recipe.text.field, skip=GROUP * state.n_groups) if sources else None
    while len(state.rows) < n and GROUP * state.n_groups < MOST_TRIED * n:
        with torch.random.fork_rng(devices=[speaker.device] if speaker.device.type == "cuda" else []):
            torch.manual_seed(recipe.seed * MOST_TRIED * 10**6 + state.n_groups)
            group = speaker.questions(GROUP) if questions is None else list(islice(questions, GROUP))
            if questions is not None and not group:
                break
            chats, n_tokens = speaker.answered(group)
        rows = (*state.rows, *(tuple({**turn} for turn in chat) for chat in chats))
        state = ChatsSoFar(key=key, n_groups=state.n_groups + 1, n_tokens=(*state.n_tokens, *n_tokens), rows=rows)
        state.save(record)
        tell("write", min(n, len(rows)), n)
    if not state.rows:
        raise ValueError(
            f"of {GROUP * state.n_groups} chats none ended within {inputs.length} tokens; give a larger --length, or a lower "
            "--temperature"
        )
    return unfinished.finish(
        [{"messages": list(chat)} for chat in state.rows[:n]],
        n_tokens=sum(state.n_tokens[:n]),
        temperature=temperature,
        seed=recipe.seed,
    )


@dataclass(frozen=True)
class Speaker:
    """A chat model that speaks for both sides; ``length``: most tokens of a whole chat."""

    model: Any
    tokenizer: Any
    length: int
    temperature: float

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @cached_property
    def around(self) -> tuple[str, str]:
        """What the template writes in front of a user's words, and behind them.

        Raises:
            ValueError: there is no chat template, or it does not write the words as they are.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template, so the model has no chats; leave out --chats")
        parts = chat_of(self.tokenizer)([{"role": "user", "content": MARK}]).split(MARK)
        if len(parts) != 2:
            raise ValueError(
                f"the chat template writes a user's words {len(parts) - 1} times, so there is no place to ask from; give "
                "questions by --text"
            )
        return parts[0], parts[1].strip()

    @cached_property
    def ends(self) -> list[int]:
        """Tokens that end a turn: those that end a text, and the one that the template writes behind a turn."""
        own = self.model.generation_config.eos_token_id
        found = [*own] if isinstance(own, (list, tuple)) else [own]
        found += [self.tokenizer.eos_token_id, *self._mark]
        return sorted({one for one in found if one is not None})

    @property
    def _mark(self) -> list[int]:
        """The token behind a turn; none where the template spells its mark with words."""
        behind = self._ids(self.around[1])
        return behind[:1] if len(behind) == 1 or behind[:1] and behind[0] in self.tokenizer.all_special_ids else []

    def questions(self, n: int) -> list[list[Turn]]:
        """What n users say first; blank ones and those that do not end are left out."""
        prompt = begun(self.tokenizer, self.around[0])
        said = self._sampled([prompt] * n, min(self.length // QUESTION_SHARE, self.length - len(prompt) - 1))
        return [[{"role": "user", "content": text}] for text, _ in said if text]

    def answered(self, turns: Sequence[list[Turn]]) -> tuple[list[list[Turn]], list[int]]:
        """The chats whose answer ends within the length, and of each the tokens of its answer with what was asked."""
        prompts = [begun(self.tokenizer, asked_by(self.tokenizer, one)) for one in turns]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= self.length // 2]
        if not fitting:
            return [], []
        room = self.length - max(len(prompts[i]) for i in fitting)
        said = self._sampled([prompts[i] for i in fitting], room)
        found = [(i, text, n_new) for i, (text, n_new) in zip(fitting, said, strict=True) if text]
        chats: list[list[Turn]] = [[*turns[i], {"role": "assistant", "content": text}] for i, text, _ in found]
        return chats, [len(prompts[i]) + n_new for i, _, n_new in found]

    @torch.inference_mode()
    def _sampled(self, prompts: Sequence[list[int]], n_new: int) -> list[tuple[str, int]]:
        """What is said behind each prompt up to its end, and how many tokens that is; nothing where it does not end."""
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=self.device)
        mask_BT = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=self.device)
        stop = [self.around[1]] if self.around[1] and not self._mark else None
        out_BT: Tensor = self.model.generate(
            ids_BT,
            attention_mask=mask_BT,
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=max(1, n_new),
            eos_token_id=self.ends or None,
            pad_token_id=self.ends[0] if self.ends else 0,
            stop_strings=stop,
            stopping_criteria=[told_tokens(longest, max(1, n_new))],
            tokenizer=self.tokenizer if stop else None,
        )
        return [self._until_end(row, stop) for row in out_BT[:, longest:].tolist()]

    def _until_end(self, tokens: list[int], stop: list[str] | None) -> tuple[str, int]:
        at = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:at], skip_special_tokens=True)
        if stop and stop[0] in text:
            kept = text.split(stop[0])[0].strip()
            return kept, len(self._ids(kept))  # Behind it stand its stop string and what fills the batch.
        return ("", 0) if at is None else (text.strip(), at + 1)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _asked(sources: list[str], field: str | None, *, skip: int) -> Iterator[list[Turn]]:
    """The turns before the first answer of every conversation that has a user's, but for the first ``skip``."""
    from shoal.text.conversations import conversations

    def first(turns: list[Turn]) -> list[Turn]:
        at = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
        return turns[:at]

    openings = (first(turns) for _, turns in conversations(sources, field))
    return islice((turns for turns in openings if any(turn["role"] == "user" for turn in turns)), skip, None)
