"""A folder that appears whole under its final name, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

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


def is_full_disk(error: Exception) -> bool:
    """Whether an error says that the disk or the quota is full; the safetensors library says it in words only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def refuse_full_disk(folder: Path, n_bytes: int) -> None:
    """Raises ValueError when ``folder`` has less than ``n_bytes`` free."""
    if shutil.disk_usage(folder).free < n_bytes:
        raise ValueError(no_space(folder, n_bytes))


def no_space(folder: Path, n_bytes: int) -> str:
    """The message for a full disk; ``n_bytes`` that were needed, 0 where that is not known."""
    free = shutil.disk_usage(folder).free
    needed = f"{n_bytes} bytes are needed" if n_bytes else "it filled up while writing"
    return f"no space left in {folder}: {needed}, {free} are free; free some or choose another place"


def side_files(source: Path) -> list[Path]:
    """What a checkpoint folder holds beside weights and config: tokenizer, chat template, generation config, code, licence."""
    files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.name not in NOT_COPIED and not path.name.endswith(WEIGHTS)]


def copy_side_files(source: Path, target: Path) -> None:
    """Copy them, never as links; a file that is already in ``target`` stays."""
    for path in side_files(source):
        if not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
