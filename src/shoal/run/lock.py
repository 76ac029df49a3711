"""One process at a time in a run folder: an advisory lock on the folder itself; it leaves no file and dies with its holder."""

import errno
import os
from functools import cache
from pathlib import Path

BUSY = (errno.EWOULDBLOCK, errno.EACCES)


def hold(folder: Path) -> None:
    """Keep the folder for this process until it ends; the same process may ask again.

    File systems without locks (some network ones) are used without.
    Raises:
        ValueError: another process holds it.
    """
    _hold(str(folder.resolve()))


@cache
def _hold(folder: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: folders cannot be locked there
        return
    handle = os.open(folder, os.O_RDONLY)  # The handle stays open: closing it would give the lock up.
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in BUSY:
            raise ValueError(
                f"--out {folder} is in use by another run of shoal; wait for it to end, or give another --out"
            ) from None
