"""A file or folder that takes its final name when it has been checked, and not before."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.words.reading import refuse_long_path


@contextmanager
def checked_place(out: Path, *, overwrite: bool, outside: Path) -> Iterator[Path]:
    """Lend a name in a temporary folder beside ``out``; what was written there takes the name ``out`` when the block ends well.

    Args:
        overwrite: a file of that name may be replaced.
        outside: the student's folder, which no result may lie in.
    Raises:
        ValueError: ``out`` cannot be made, is there and may not be replaced, or lies inside the student's folder.
    """
    out = Path(out)
    refuse_long_path(out)
    if out.resolve().is_relative_to(outside.resolve()):
        raise ValueError(f"--out {out} is inside the student's folder {outside}; choose a place outside it")
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if out.is_dir() and not out.is_symlink() and not is_empty_folder:
        raise ValueError(f"{out} is a folder that holds something; choose another place or remove it")
    if out.is_symlink() or out.exists() and not out.is_file() and not is_empty_folder:
        raise ValueError(f"{out} exists and is no plain file and no empty folder; choose another place or remove it")
    if out.is_file() and not overwrite:
        raise ValueError(f"{out} exists; give another name, or --overwrite")
    around = _folder_beside(out)
    try:
        yield around / out.name
        if is_empty_folder:  # A file cannot take the place of a folder.
            out.rmdir()
        os.replace(around / out.name, out)
    except ValueError as error:  # People know the place by its final name only.
        if str(around) not in str(error):
            raise
        raise ValueError(str(error).replace(str(around / out.name), str(out))) from None
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _folder_beside(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        # A file is in the way, or the place takes no folder.
        raise ValueError(f"--out {out} cannot be made ({error.strerror}); give another place") from None
