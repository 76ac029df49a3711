"""Tensors in one safetensors file: written under its final name or not at all, read one at a time and without a map.

Mapped pages count as memory, and stay for as long as one tensor of the file is alive.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shoal.engine.disk import is_full_disk, no_space
from shoal.engine.shards import read_shard
from shoal.engine.streamed import read_tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file; from safetensors 0.8 on without a copy of its content.

    Raises:
        ValueError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(content, temporary, metadata=dict(metadata) if metadata else None)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # The library lets only the owner read it.
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        temporary.unlink(missing_ok=True)  # The file goes first, so that the message says what the next try will find.
        raise ValueError(no_space(path.parent, 0)) from None
    finally:
        temporary.unlink(missing_ok=True)


def each_tensor(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, in the order of the file; each has memory of its own.

    Raises:
        ValueError: the file is damaged.
    """
    shard = read_shard(path)
    for name, slot in shard.slots.items():
        yield name, read_tensor(shard, slot, torch.empty(slot.n_bytes, dtype=torch.uint8))


def mapped_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, each a map of its part of the file: read when it is used, dropped when memory is short.

    For values that are as large as the model, and used layer by layer. The file must stay as it is while one of them is alive.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (no dict)
            yield name, file.get_tensor(name)


def exact_bmm(a: Tensor, b: Tensor) -> Tensor:
    """``torch.bmm`` in full fp32, whatever the process has set: the 10 bits of TF32 would show in every small angle.

    Set backend by backend: the one switch for all of them raises once a program has used these.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # not in the stubs
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        return torch.bmm(a, b)
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
