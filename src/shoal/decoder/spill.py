"""Hidden states between the layers of a pass: in memory while they fit, in one temporary file beyond that.

The file is written and read, never mapped: mapped pages would count as memory. It has no name and is gone with the process.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

SHARE = 4  # a pass may keep states in a quarter of the memory that is free when it starts


@dataclass(frozen=True)
class _Place:
    offset: int
    n_bytes: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Spill:
    """Tensors by key. What is taken out has the bits, shape, dtype and device of what was put in.

    Args:
        limit: bytes that may stay in memory; None: a quarter of what is free now.
        folder: of the temporary file; :func:`spill_folder` unless given.
    """

    def __init__(self, limit: int | None = None, *, folder: Path | None = None) -> None:
        self.limit = free_memory() // SHARE if limit is None else limit
        self._folder = folder
        self._kept: dict[Hashable, tuple[Tensor, torch.device]] = {}  # on the CPU, and where it came from
        self._written: dict[Hashable, _Place] = {}
        self._n_kept = 0
        self._free: dict[int, list[int]] = {}
        self._end = 0
        self._file: Any = None

    @property
    def bytes_on_disk(self) -> int:
        return self._end

    def put(self, key: Hashable, value: Tensor) -> None:
        self.drop(key)
        n_bytes = value.numel() * value.element_size()
        if self._n_kept + n_bytes <= self.limit:
            self._kept[key] = (value.cpu(), value.device)
            self._n_kept += n_bytes
            return
        free = self._free.get(n_bytes)
        offset = free.pop() if free else self._end
        self._end = max(self._end, offset + n_bytes)
        raw = value.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()
        try:
            self._open().seek(offset)
            self._file.write(memoryview(cast(Any, raw)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = self._folder or spill_folder()
            raise ValueError(f"no space left in {where} for hidden states; free some, or set TMPDIR to a larger disk") from None
        self._written[key] = _Place(offset, n_bytes, value.shape, value.dtype, value.device)

    def get(self, key: Hashable) -> Tensor:
        if key in self._kept:
            value, device = self._kept[key]
            return value.to(device)
        place = self._written[key]
        raw = torch.empty(place.n_bytes, dtype=torch.uint8)
        self._file.seek(place.offset)
        n = self._file.readinto(memoryview(cast(Any, raw.numpy())))
        assert n == place.n_bytes, "the temporary file of hidden states is shorter than what was written"
        return raw.view(place.dtype).view(place.shape).to(place.device)

    def drop(self, key: Hashable) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._n_kept -= kept[0].numel() * kept[0].element_size()
        place = self._written.pop(key, None)
        if place is not None:
            self._free.setdefault(place.n_bytes, []).append(place.offset)

    def close(self) -> None:
        self._kept.clear()
        self._written.clear()
        if self._file is not None:
            self._file.close()

    def _open(self) -> Any:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder or spill_folder())  # noqa: SIM115 (lives as long as the pass)
        return self._file


def spill_folder() -> Path:
    """Where hidden states wait: ``TMPDIR`` where it is set, else /var/tmp, since /tmp may be held in memory."""
    lasting = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


def free_memory() -> int:
    """Bytes that can be taken now without swapping, a container's limit included."""
    found = [_meminfo_available()]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
        except (OSError, ValueError):  # no such limit here, or "max"
            continue
    return min(found)


def _meminfo_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
