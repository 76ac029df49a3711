"""The processes of one job: which of them this is, its share of the work, and what all of them know together.

``torchrun`` and ``accelerate launch`` start one process per device and tell each its place through the environment. Every
process runs the same stages on its share of the batches and adds its sums to those of the others, so all of them hold the same
figures and take the same decisions. The first one alone reads text, writes, locks and prints. One process runs the same code
with nobody to talk to: every call returns at once, and nothing of torch is loaded for it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# Shares are equal up to one batch, so this is far more than the slowest of them needs.
LONGEST_SHARE = timedelta(minutes=30)
# The first worker may take this long for what it does alone: reading text, writing and checking a checkpoint.
LONGEST_WAIT = timedelta(hours=12)

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # The launcher looks there for the reason of a failure.


class LostWorker(RuntimeError):
    """Another process of the job ended or stopped answering. Which one, and why, is for its launcher to say."""


class Workers:
    """The processes of a job, seen from one of them. Made by :func:`join`; ``ALONE`` is a job of one.

    Attributes:
        rank, size: this process among all, from 0, and how many they are.
        local_rank, local_size: the same among those of this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self._sharing: Any = None  # The value holds process groups of torch.distributed.
        self._waiting: Any = None
        self._alone_in = ""  # The text says what the first worker is doing while the others wait for it.

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    # -- shares ------------------------------------------------------------------------------------------------------

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Item i goes to worker i mod size: nothing is left out, nothing is given twice, nothing is padded."""
        return islice(items, self.rank, None, self.size)

    def gather(self, mine: Sequence[T]) -> list[T]:
        """The inverse of :meth:`share`: what all workers made of their items, in the order of the items."""
        if self.size == 1:
            return list(mine)
        every: list[Any] = [None] * self.size
        with self._talk("gathering results") as dist:
            dist.all_gather_object(every, list(mine), group=self._sharing)
        return [every[i % self.size][i // self.size] for i in range(sum(len(one) for one in every))]

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all workers, by name; the same bits on every worker, on the devices the values came from.

        Args:
            values: the same names, shapes and dtypes everywhere, float64 or int64: other dtypes would lose digits.
        """
        if self.size == 1:
            return dict(values)
        import torch

        sums: dict[str, Tensor] = {}
        for dtype in (torch.float64, torch.int64):
            named = {name: value for name, value in sorted(values.items()) if value.dtype == dtype}
            if not named:
                continue
            flat = torch.cat([value.detach().reshape(-1).cpu() for value in named.values()])
            with self._talk("adding sums") as dist:
                dist.all_reduce(flat, group=self._sharing)
            pieces = flat.split([value.numel() for value in named.values()])
            sums.update({n: p.view(v.shape).to(v.device) for (n, v), p in zip(named.items(), pieces, strict=True)})
        assert sums.keys() == values.keys(), "sums over workers are float64 or int64"
        return sums

    # -- the first worker --------------------------------------------------------------------------------------------

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first worker makes, on every worker. A ValueError of it is raised everywhere."""
        return cast(T, self._first(make, send=True))

    def on_first(self, make: Callable[[], T]) -> T | None:
        """As :meth:`from_first`, but the value stays where it was made; None elsewhere. Returns when it is done."""
        return self._first(make, send=False)

    def _first(self, make: Callable[[], T], *, send: bool) -> T | None:
        if self.size == 1:
            return make()
        value: T | None = None
        told: list[Any] = [None]  # (value, message of a refusal)
        if self.is_first:
            assert not self._alone_in, f"{self._alone_in} asks the other workers, who wait for it"
            self._alone_in = getattr(make, "__qualname__", "the first worker")
            try:
                value = make()
                told = [(value if send else None, None)]
            except ValueError as refusal:
                told = [(None, str(refusal))]
                raise
            except Exception as error:
                told = [(None, f"the first worker failed: {type(error).__name__}: {error}")]
                raise
            finally:
                self._alone_in = ""
                if told[0] is not None:  # Without a word it was interrupted, and so are the others.
                    self._tell(told)
            return value
        self._tell(told)
        sent, refusal_text = told[0]
        if refusal_text is not None:
            raise ValueError(refusal_text)
        return cast("T | None", sent)

    def _tell(self, told: list[Any]) -> None:
        with self._talk("waiting for the first worker") as dist:
            dist.broadcast_object_list(told, src=0, group=self._waiting)

    # -- devices and connections -------------------------------------------------------------------------------------

    def device(self, device: str) -> str:
        """The device of this worker: ``cuda`` becomes a card of its own.

        Raises:
            ValueError: one card for several workers.
        """
        if self.size == 1 or not device.startswith("cuda") and device != "auto":
            return device
        import torch

        if device != "cuda":
            raise ValueError(
                f"--device {device} is the same for {self.local_size} processes; use --device cuda: each takes its own card"
            )
        if torch.cuda.device_count() < self.local_size:
            raise ValueError(f"{self.local_size} processes need a card each, here are {torch.cuda.device_count()}; start fewer")
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    @contextmanager
    def _talk(self, what: str) -> Iterator[Any]:
        """torch.distributed, connected. A connection that breaks or stays silent becomes :class:`LostWorker`."""
        import torch.distributed as dist

        assert not self._alone_in, f"{self._alone_in} asks the other workers, who wait for it"
        if self._sharing is None:
            self._connect()
        try:
            yield dist
        except RuntimeError as error:  # gloo and torch have no narrower class for a lost peer.
            reason = " ".join(str(error).split())[:160]
            raise LostWorker(f"worker {self.rank} of {self.size} lost the others while {what} ({reason})") from error

    def _connect(self) -> None:
        """Open the connections, over gloo: sums and plain data are small and live on the CPU. Training uses the device's."""
        import atexit

        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
            dist.init_process_group(backend, timeout=LONGEST_SHARE)
            atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
        self._sharing = dist.new_group(backend="gloo", timeout=LONGEST_SHARE)
        self._waiting = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)


ALONE = Workers()


@cache
def join() -> Workers:
    """The job this process was started into by ``torchrun`` or ``accelerate launch``; ``ALONE`` where it was started by hand.

    Connections open when they are first used. The same object at every call: a process is in one job.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    rank = int(os.environ["RANK"])
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return Workers(rank, size, local_rank=local_rank, local_size=local_size)


def report_failure(message: str) -> None:
    """Leave the reason where the launcher looks for it, so that it can name the worker and the reason."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return
    details = {"py_callstack": message, "timestamp": str(int(time.time()))}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": {"message": message, "extraInfo": details}}, file)
