"""Training text that the teacher writes itself, for when the text it was trained on is not at hand.

Every sample starts from the first tokens of a sample of the given text and goes on as the teacher samples it. Samples are drawn
in groups, each with a seed of its own, and written as they come, so that a killed run goes on with the next group.
Shapes: N samples, T positions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.engine.told_tokens import told_tokens
from shoal.train.heal.text_rows import TextRows
from shoal.words.records import Record, stable_hash

GROUP = 16
IDS, RECORD = "written.npy", "written.json"


class WrittenText(Record):
    """How much of a text is written, and by which settings."""

    n_samples: int
    key: str


@torch.no_grad()
def write_text(
    folder: Path, model: Any, prompts: TextRows, *, n_prompt: int, temperature: float, seed: int, key: str,
    tell: Callable[[int, int], None] | None = None,
) -> TextRows:  # fmt: skip
    """As many samples as ``prompts`` has, of the same length, written by a model.

    Args:
        model: the teacher, in eval mode.
        prompts: packed samples; their first ``n_prompt`` tokens begin the new ones.
        temperature: of sampling; above 0.
        key: identity of the teacher.
    Raises:
        ValueError: a temperature that is not above 0; no room behind the prompt.
    """
    n, length = prompts.ids_NT.shape
    if not temperature > 0:
        raise ValueError(f"temperature={temperature:g} needs to be above 0")
    if not 1 <= n_prompt < length:
        raise ValueError(f"prompts of {n_prompt} tokens leave no room in samples of {length}; give 1..{length - 1}")
    key = stable_hash(key, prompts.data_hash, n, length, n_prompt, temperature, seed)
    folder.mkdir(parents=True, exist_ok=True)
    found = WrittenText.load(folder / RECORD) if (folder / RECORD).exists() else None
    done = found.n_samples if found is not None and found.key == key else 0
    n_vocab = model.get_input_embeddings().num_embeddings
    ids_NT = np.lib.format.open_memmap(folder / IDS, mode="r+" if done else "w+", dtype=np.int64, shape=(n, length))
    for at in range(done, n, GROUP):
        prompt = prompts.ids_NT[at : at + GROUP, :n_prompt].to(model.device)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed * n + at)
            written = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                max_new_tokens=length - n_prompt,
                eos_token_id=n_vocab,  # No token: an end inside a sample is text like any other, as in packed blocks.
                pad_token_id=0,
                stopping_criteria=[told_tokens(n_prompt, length - n_prompt)],
            )
        ids_NT[at : at + GROUP] = written.cpu().numpy()
        ids_NT.flush()
        WrittenText(n_samples=min(n, at + GROUP), key=key).save(folder / RECORD)
        if tell is not None:
            tell(min(n, at + GROUP), n)
    ids = torch.from_numpy(np.array(ids_NT))
    name = f"text that the teacher wrote (temperature {temperature:g})"
    return TextRows(ids, torch.full((n,), length), None, name, stable_hash(key, ids.numpy().tobytes()))
