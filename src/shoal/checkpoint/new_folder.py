"""A folder that appears whole under its final name, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from shoal.engine.disk import is_full_disk, no_space, refuse_full_disk

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
# The first two are written anew for a student; the third describes weights of another format, which are not copied.
NOT_COPIED = ("config.json", "README.md", "params.json", "plan.json")
"""Files of a source that say what it is; a checkpoint made of it is another, the plan that made the source not its own."""
TEMPLATES = "additional_chat_templates"  # transformers 5 keeps here the chat templates that have names.


@contextmanager
def new_folder(out: Path, *, n_bytes: int = 0) -> Iterator[Path]:
    """Lend a temporary sibling of ``out``; it takes the name ``out`` when the block ends well and is deleted otherwise.

    Args:
        n_bytes: what will be written, checked against the free space first.
    Raises:
        ValueError: ``out`` exists and is not an empty folder; too little space, before or while writing.
    """
    out = Path(out)
    if out.is_symlink():
        raise ValueError(
            f"{out} is a link; a checkpoint replaces it only as a whole, so give the folder itself or another name"
        )
    if Path.cwd().is_relative_to(out.resolve()):
        raise ValueError(f"{out} is the folder you are in, or above it; give a new folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; nothing is overwritten, choose another place or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        refuse_full_disk(out.parent, n_bytes)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        # A file is in the way, or the place takes no folder.
        raise ValueError(f"--out {out} cannot be made ({error.strerror}); give a folder in a place that can hold it") from None
    try:
        yield temporary
        make_readable(temporary)
        os.replace(temporary, out)  # The target is an empty folder or nothing.
    except ValueError as error:  # The reader of the message knows the folder by its final name only.
        if str(temporary) not in str(error):
            raise
        raise ValueError(str(error).replace(str(temporary), str(out))) from None
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)  # It goes first, so that the free space is what the next try finds.
        raise ValueError(no_space(out.parent, n_bytes)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """Let everybody read a folder: safetensors' own writer lets only the owner, and a server is often another user."""
    os.chmod(folder, 0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            os.chmod(path, 0o755 if path.is_dir() else 0o644)


def files_of(folder: Path) -> list[Path]:
    """The files of a checkpoint folder: what lies in it and is not hidden, and the chat templates in its folder for them."""
    found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return found + sorted(path for path in (folder / TEMPLATES).glob("[!.]*.jinja") if path.is_file())


def side_files(source: Path) -> list[Path]:
    """What a checkpoint folder holds beside weights and config: tokenizer, chat templates, generation config, code, licence.

    Raises:
        ValueError: one of them is a link out of the folder (those of the hub's cache stay within it).
    """
    files = [path for path in files_of(source) if path.name not in NOT_COPIED and not path.name.endswith(WEIGHTS)]
    for path in files:
        if not _stays_within(path, source):
            raise ValueError(
                f"{path} is a link to {path.resolve()}, outside the model's folder, and would be copied into the checkpoint; "
                "put the file itself there, or remove the link"
            )
    return files


def _stays_within(path: Path, folder: Path) -> bool:
    """Whether a file is in its folder, or a link that ends there or in the blobs of this snapshot of the hub's cache."""
    places = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        places.append(folder.resolve().parent.parent / "blobs")
    return any(path.resolve().is_relative_to(place) for place in places)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy them, never as links; a file that is already in ``target`` stays."""
    for path in side_files(source):
        place = target / path.relative_to(source)
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
