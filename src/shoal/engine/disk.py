"""Full disks: found out before writing where that can be, and told from other errors where it cannot."""

import errno
import shutil
from pathlib import Path


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
