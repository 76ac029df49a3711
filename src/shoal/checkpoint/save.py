"""Save a model as a stock checkpoint folder: config, safetensors, generation config, tokenizer; whole or not at all."""

import json
from pathlib import Path
from typing import Any

from shoal.checkpoint.config_json import CONFIG, state_both_names, write_config
from shoal.checkpoint.new_folder import copy_side_files, new_folder, side_files
from shoal.engine.model_config import read_config
from shoal.words.reading import read_json


def save(model: Any, tokenizer: Any | None, out: Path, *, source: Path | None = None) -> Path:
    """Write a model so that ``AutoModelForCausalLM.from_pretrained(out)`` loads it.

    Args:
        tokenizer: saved too where there is no ``source``, whose files are never written anew: another version of the
            library gives them names that older ones do not know.
        source: local folder the model came from; its config.json is edited, and its side files (tokenizer, generation config,
            chat template, licence, ...) are copied as they are.
    Returns: ``out``.
    Raises:
        ValueError: ``out`` is not empty; too little disk space; the source's config.json cannot describe the model.
    """
    from shoal.engine.open import quiet_loading

    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())  # Tied parameters count once, as on disk.
    if source is not None:
        n_bytes += sum(path.stat().st_size for path in side_files(source))
    with new_folder(out, n_bytes=n_bytes) as folder, quiet_loading():
        model.save_pretrained(str(folder))
        config_file = folder / CONFIG
        written = read_json(config_file)
        if source is None:
            state_both_names(written, model.config.to_dict())
            config_file.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(str(folder))
        else:
            stated = {"architectures": written.get("architectures"), **read_json(source / CONFIG)}
            write_config(config_file, stated, read_config(source, like=model), model.config)
            (folder / "generation_config.json").unlink(missing_ok=True)  # The file of the source is copied as it stands.
            copy_side_files(source, folder)
    return Path(out)
