"""Hidden states between the layers of a pass: on the card they were made on, in memory, and in one temporary file beyond that.

States of a card go through pinned memory without waiting: copies and layers share a stream, so each sees what came before it.
The file is written and read, never mapped: mapped pages would count as memory. It has no name and is gone with the process.
"""

import errno
import os
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shoal.engine.workers import join

ONE_IN = 4  # A pass may keep states in a quarter of the memory that is free when it starts, and of that of the card.


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
        card_limit: bytes that may stay on a card, of states that were made there; None: a quarter of what is free when the
            first of them comes.
        folder: of the temporary file; :func:`spill_folder` unless given.
    """

    def __init__(self, limit: int | None = None, *, card_limit: int | None = None, folder: Path | None = None) -> None:
        self.limit = free_memory() // ONE_IN if limit is None else limit
        self.card_limit = card_limit
        self._folder = folder
        self._kept: dict[Hashable, tuple[Tensor, torch.device]] = {}  # The device is the one that the tensor came from.
        self._written: dict[Hashable, _Place] = {}
        self._n_kept = self._n_on_card = 0
        self._free: dict[int, list[int]] = {}
        self._end = 0
        self._file: Any = None

    @property
    def bytes_on_disk(self) -> int:
        return self._end

    def put(self, key: Hashable, value: Tensor) -> None:
        self.drop(key)
        n_bytes = value.numel() * value.element_size()
        if value.device.type == "cuda":
            if self.card_limit is None:
                self.card_limit = free_on_card(value.device) // ONE_IN
            if self._n_on_card + n_bytes <= self.card_limit:
                self._kept[key] = (value.detach(), value.device)
                self._n_on_card += n_bytes
                return
        if self._n_kept + _held(value) <= self.limit:
            self._kept[key] = (_in_memory(value), value.device)
            self._n_kept += _held(value)
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
            return value.to(device, non_blocking=True)
        place = self._written[key]
        return self._read(place.offset, place.n_bytes, place).view(place.shape).to(place.device)

    def get_sample(self, key: Hashable, row: int) -> Tensor:
        """One row of the first dimension, as (1, ...); of what is in the file only that row is read."""
        if key in self._kept:
            value, device = self._kept[key]
            return value[row : row + 1].to(device, non_blocking=True)
        place = self._written[key]
        n_bytes = place.n_bytes // place.shape[0]
        return self._read(place.offset + row * n_bytes, n_bytes, place).view(1, *place.shape[1:]).to(place.device)

    def drop(self, key: Hashable) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            value, device = kept
            if value.device.type == "cuda":
                self._n_on_card -= value.numel() * value.element_size()
            else:
                self._n_kept -= _held(value) if device.type != "cuda" else _pinned_bytes(value)
        place = self._written.pop(key, None)
        if place is not None:
            self._free.setdefault(place.n_bytes, []).append(place.offset)

    def close(self) -> None:
        self._kept.clear()
        self._written.clear()
        if self._file is not None:
            self._file.close()

    def _read(self, offset: int, n_bytes: int, place: _Place) -> Tensor:
        raw = torch.empty(n_bytes, dtype=torch.uint8)
        self._file.seek(offset)
        n = self._file.readinto(memoryview(cast(Any, raw.numpy())))
        assert n == n_bytes, "the temporary file of hidden states is shorter than what was written"
        return raw.view(place.dtype)

    def _open(self) -> Any:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder or spill_folder())  # noqa: SIM115 (lives as long as the pass)
        return self._file


def _in_memory(value: Tensor) -> Tensor:
    """On the CPU: itself, or a copy in pinned memory that the card makes when it comes to it."""
    if value.device.type != "cuda":
        return value.cpu()
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value.detach(), non_blocking=True)


def _held(value: Tensor) -> int:
    """Bytes of memory that a value takes when it is kept there."""
    return _pinned_bytes(value) if value.device.type == "cuda" else value.numel() * value.element_size()


def _pinned_bytes(value: Tensor) -> int:
    """The allocator of pinned memory hands out powers of two."""
    n_bytes = value.numel() * value.element_size()
    return 1 << max(0, n_bytes - 1).bit_length()


def spill_folder() -> Path:
    """Where hidden states wait: ``TMPDIR`` where it is set, else /var/tmp, since /tmp may be held in memory."""
    lasting = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


def free_memory() -> int:
    """Bytes this process can take now without swapping, a container's limit included; its part where a job has several here."""
    found = [_meminfo_available()]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
        except (OSError, ValueError):  # The machine has no such limit, or it says "max".
            continue
    return min(found) // join().local_size


def free_on_card(device: torch.device | str) -> int:
    """Bytes of a card that this process can take now: what nobody has, and what its own allocator keeps and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _meminfo_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
