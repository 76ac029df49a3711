"""A small world on disk: a tiny model with a tokenizer, and text with enough words for all four slices."""

import json
import random
from pathlib import Path

from families import tiny_model
from text_world import word_tokenizer

N_WORDS = 40


def write_model(folder: Path, *, family: str = "llama", n_layers: int = 6, seed: int = 0) -> Path:
    """A random checkpoint whose vocabulary covers the words ``w0 .. w39``."""
    model = tiny_model(family, n_layers=n_layers, seed=seed)
    tokenizer = word_tokenizer(N_WORDS)
    assert len(tokenizer) <= model.config.vocab_size
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_text(path: Path, *, n_documents: int = 400, seed: int = 0) -> Path:
    """Random documents of 20 to 60 words, one per line of JSON."""
    draw = random.Random(seed)
    rows = [" ".join(f"w{draw.randrange(N_WORDS)}" for _ in range(draw.randrange(20, 60))) for _ in range(n_documents)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path
