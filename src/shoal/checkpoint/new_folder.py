"""A folder that appears whole under its final name, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from shoal.engine.disk import is_full_disk, no_space, refuse_full_disk

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
NOT_COPIED = ("config.json", "README.md")  # both are written anew for a student


@contextmanager
def new_folder(out: Path, *, n_bytes: int = 0) -> Iterator[Path]:
    """Lend a temporary sibling of ``out``; it takes the name ``out`` when the block ends well and is deleted otherwise.

    Args:
        n_bytes: what will be written, checked against the free space first.
    Raises:
        ValueError: ``out`` exists and is not an empty folder; too little space, before or while writing.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; nothing is overwritten, choose another place or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    refuse_full_disk(out.parent, n_bytes)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        os.replace(temporary, out)  # onto an empty folder or nothing
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)  # first, so that the free space is what the next try will find
        raise ValueError(no_space(out.parent, n_bytes)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def side_files(source: Path) -> list[Path]:
    """What a checkpoint folder holds beside weights and config: tokenizer, chat template, generation config, code, licence."""
    files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.name not in NOT_COPIED and not path.name.endswith(WEIGHTS)]


def copy_side_files(source: Path, target: Path) -> None:
    """Copy them, never as links; a file that is already in ``target`` stays."""
    for path in side_files(source):
        if not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
