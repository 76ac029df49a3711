"""Save a model as a stock checkpoint folder: config, safetensors, generation config, tokenizer; whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.checkpoint.new_folder import copy_side_files, new_folder, side_files


def save(model: Any, tokenizer: Any | None, out: Path, *, source: Path | None = None) -> Path:
    """Write a model so that ``AutoModelForCausalLM.from_pretrained(out)`` loads it.

    Args:
        tokenizer: saved too; with a ``source`` folder its files are copied as they are instead.
        source: local folder the model came from; its side files (tokenizer, chat template, licence, ...) are copied.
    Returns: ``out``.
    Raises:
        ValueError: ``out`` is not empty; too little disk space.
    """
    from shoal.engine.open import quiet_loading

    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())  # tied ones once, as on disk
    if source is not None:
        n_bytes += sum(path.stat().st_size for path in side_files(source))
    with new_folder(out, n_bytes=n_bytes) as folder, quiet_loading():
        model.save_pretrained(str(folder))
        if source is not None:
            copy_side_files(source, folder)
        if tokenizer is not None and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
            tokenizer.save_pretrained(str(folder))
    return Path(out)
