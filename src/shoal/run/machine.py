"""The memory that layers run in, of the machine or of a card: what is taken, what is free, what kernels take for a moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHUNK = 64 << 20
"""fp32 temporaries of the divergences and of the scan's geometry, together, on a CPU."""

N_DIVERGENCE = 5
"""fp32 temporaries of a chunk of logits while a divergence is computed."""

CONTEXT = 600 << 20
"""Of a card: the driver's, and the libraries' work space."""


@dataclass(frozen=True)
class Place:
    """The memory that layers run in.

    Attributes:
        base: taken before anything is opened.
        free: what there is in all, ``base`` included.
        spill: of states that a pass may keep there.
        scan, logits: temporaries of the scan and of the divergences.
        host: the machine's, where this is a card.
    """

    base: int
    free: int
    spill: int
    scan: int = CHUNK
    logits: int = CHUNK
    host: Place | None = None


def place_of(device: str) -> Place:
    """The memory of a device as it is now. Raises ValueError: a device that cannot be used."""
    from shoal.decoder.open import usable_device
    from shoal.decoder.spill import SHARE, free_memory, free_on_card
    from shoal.scan.gram import OTHER_CHUNK_BYTES
    from shoal.score.divergence import CHUNK_ELSEWHERE

    base = process_memory()
    machine = Place(base, free_memory() + base, free_memory() // SHARE)
    where = usable_device(device)
    if where.type != "cuda":
        return machine
    free = free_on_card(where)
    # the updates of a chunk in a scan, and its geometry
    return Place(CONTEXT, free + CONTEXT, free // SHARE, 2 * OTHER_CHUNK_BYTES, N_DIVERGENCE * 4 * CHUNK_ELSEWHERE, machine)


def process_memory() -> int:
    """Bytes of this process now, the libraries a run needs included: they are imported first."""
    import accelerate  # noqa: F401  (a run that reads layers from disk imports it)
    import torch  # noqa: F401

    from shoal.report.heatmap import draws_pictures
    from shoal.surgery import blueprint  # noqa: F401  (and transformers with it)

    draws_pictures()  # and loads what it draws with
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):  # no such file outside Linux: what a process with these libraries has there
        return 600 << 20
