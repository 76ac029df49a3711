"""Text that a model writes itself, to be given to ``--text``: for when the text it was trained on is not at hand.

Blocks of the given text lend their first tokens; the model goes on by sampling. Calibrated on that, a scan and a repair see the
distribution that the model itself has learned, chat and reasoning included, which no public text need be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shoal.engine.opening import Opening
from shoal.recipes.recipe import Recipe
from shoal.run.job import open_inputs
from shoal.text.samples import Samples, separator
from shoal.words.progress import tell
from shoal.words.records import Record, write_atomically

PROMPT_TOKENS = 16


class WrittenFile(Record):
    """What was written: a file of JSON lines, each with one ``text`` or the ``messages`` of one chat."""

    path: str
    n_texts: int
    n_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class UnfinishedFile:
    """A new file of JSON lines, and the folder beside it that keeps what a killed run goes on from.

    Raises:
        ValueError: the file is there or is named otherwise.
    """

    out: Path

    def __post_init__(self) -> None:
        if self.out.suffix != ".jsonl":
            raise ValueError(f"--out {self.out} is written as JSON lines; give a name that ends in .jsonl")
        if self.out.exists():
            raise ValueError(f"--out {self.out} is there already; give another name, or remove it")

    @property
    def part(self) -> Path:
        """The folder of what is not finished."""
        return self.out.with_suffix(".jsonl.part")

    def finish(self, rows: Sequence[Mapping[str, Any]], *, n_tokens: int, temperature: float, seed: int) -> WrittenFile:
        """Write the rows, and remove what stood in for them."""
        write_atomically(self.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        shutil.rmtree(self.part)
        return WrittenFile(path=str(self.out), n_texts=len(rows), n_tokens=n_tokens, temperature=temperature, seed=seed)


def write_own_text(
    recipe: Recipe,
    out: Path,
    *,
    n: int,
    temperature: float = 1.0,
    opening: Opening = Opening(),
) -> WrittenFile:
    """Let ``recipe.model`` write ``n`` texts of the recipe's length.

    What was written stays in ``out`` with ``.part`` behind its name until all of it is there, so a killed run goes on.

    Args:
        recipe: its text begins each one; its length and seed hold.
        out: a new file that ends in ``.jsonl``.
        temperature: of sampling; 1 is the model's own distribution.
    Raises:
        ValueError: the file is there or is named otherwise, and everything that opening model and text can meet.
    """
    from shoal.train.heal.teacher_text import write_text
    from shoal.train.heal.text_rows import TextRows

    unfinished = UnfinishedFile(out)
    inputs = open_inputs(recipe, opening.in_memory())
    if inputs.corpus is None:
        raise ValueError("text is written by one process; start it without a launcher")
    prompts = inputs.corpus.samples("training", n=n, length=inputs.length)
    written = write_text(
        unfinished.part,
        inputs.view.model,
        TextRows.of(prompts),
        n_prompt=len(prompts.start) + max(1, min(PROMPT_TOKENS, inputs.length // 4)),
        temperature=temperature,
        seed=recipe.seed,
        key=inputs.model_key,
        tell=partial(tell, "write"),
    )
    texts = texts_of(prompts, written.ids_NT.tolist(), inputs.opened.need_tokenizer())
    n_tokens = int(written.ids_NT.numel())
    return unfinished.finish([{"text": text} for text in texts], n_tokens=n_tokens, temperature=temperature, seed=recipe.seed)


def texts_of(prompts: Samples, rows: list[list[int]], tokenizer: object) -> list[str]:
    """The documents of every block: what stands between two separators, without special tokens; blank ones are left out."""
    between, found = separator(tokenizer), []
    for row in rows:
        documents: list[list[int]] = [[]]
        for token in row[len(prompts.start) :]:
            if token == between:
                documents.append([])
            else:
                documents[-1].append(token)
        found += [tokenizer.decode(one, skip_special_tokens=True).strip() for one in documents]  # type: ignore[attr-defined]
    return [text for text in found if text]
