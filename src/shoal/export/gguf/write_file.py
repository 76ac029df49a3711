"""Write a GGUF file from keys and streams of bytes: under its final name or not at all, in constant memory."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shoal.engine.disk import is_full_disk, no_space, refuse_full_disk
from shoal.engine.gguf_head import ALIGNMENT, MAGIC, STRING, UINT32, Value
from shoal.words.progress import megabytes


@dataclass(frozen=True)
class Outgoing:
    """One tensor of a file to be written.

    Attributes:
        shape: contiguous dimension first.
        kind: number of its block format.
        chunks: gives its bytes, piece by piece, when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    n_bytes: int
    chunks: Callable[[], Iterable[bytes]]


@contextmanager
def new_file(out: Path, *, n_bytes: int, overwrite: bool = False) -> Iterator[Path]:
    """Lend a temporary sibling of ``out`` that takes its name when the block ends well and is deleted otherwise.

    Args:
        n_bytes: what will be written, checked against the free space first.
    Raises:
        ValueError: ``out`` exists and ``overwrite`` is not set, or is no plain file; too little space.
    """
    out = Path(out)
    if out.is_symlink() or out.exists() and not out.is_file():
        raise ValueError(f"{out} exists and is no plain file; choose another name")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; give another name, or --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    refuse_full_disk(out.parent, n_bytes)
    descriptor, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, out)
    except OSError as error:
        if not is_full_disk(error):
            raise
        temporary.unlink(missing_ok=True)  # The file goes first, so that the free space is what the next try will find.
        raise ValueError(no_space(out.parent, n_bytes)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_gguf(
    out: Path, keys: Mapping[str, Value], tensors: Sequence[Outgoing], *, version: int = 3, overwrite: bool = False
) -> Path:
    """Write a file of version 3 (or as the source's); the order of keys and tensors is that given.

    Args:
        keys: ``general.alignment`` among them where it is not 32.
    Returns: ``out``.
    Raises:
        ValueError: as :func:`new_file`; a source became shorter while it was read.
    """
    alignment = keys["general.alignment"].value if "general.alignment" in keys else ALIGNMENT
    head = _head(keys, tensors, version, alignment)
    n_bytes = len(head) + sum(_padded(one.n_bytes, alignment) for one in tensors)
    with new_file(out, n_bytes=n_bytes, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(head)
        written = megabytes("write the file", n_bytes - len(head))
        for one in tensors:
            _write_tensor(file, one, alignment)
            written(_padded(one.n_bytes, alignment))
        file.flush()
        os.fsync(file.fileno())
    return Path(out)


def _head(keys: Mapping[str, Value], tensors: Sequence[Outgoing], version: int, alignment: int) -> bytes:
    parts = [MAGIC, version.to_bytes(4, "little"), len(tensors).to_bytes(8, "little"), len(keys).to_bytes(8, "little")]
    for name, value in keys.items():
        parts += [Value.of(name, STRING).raw, value.kind.to_bytes(4, "little"), value.raw]
    offset = 0
    for one in tensors:
        sizes = b"".join(size.to_bytes(8, "little") for size in one.shape)
        parts += [Value.of(one.name, STRING).raw, Value.of(len(one.shape), UINT32).raw, sizes]
        parts += [Value.of(one.kind, UINT32).raw, offset.to_bytes(8, "little")]
        offset += _padded(one.n_bytes, alignment)
    head = b"".join(parts)
    return head + bytes(-len(head) % alignment)


def _write_tensor(file: BinaryIO, one: Outgoing, alignment: int) -> None:
    written = 0
    for piece in one.chunks():
        file.write(piece)
        written += len(piece)
    if written != one.n_bytes:
        raise ValueError(f"the tensor {one.name!r} came with {written} bytes, {one.n_bytes} were announced")
    file.write(bytes(-written % alignment))


def _padded(n_bytes: int, alignment: int) -> int:
    return n_bytes + -n_bytes % alignment
