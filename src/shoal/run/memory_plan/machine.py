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
class Machine:
    """The memory that layers run in.

    Attributes:
        base: taken before anything is opened.
        free: what there is in all, ``base`` included.
        spill: of states that a pass may keep there.
        scan, logits: temporaries of the scan and of the divergences.
        widened: numbers that a product of 16 bits takes in float32 at a time, of weights as of states; 0 where it takes none.
        host: the machine's, where this is a card.
    """

    base: int
    free: int
    spill: int
    scan: int = CHUNK
    logits: int = CHUNK
    widened: int = 0
    host: Machine | None = None


def machine_of(device: str) -> Machine:
    """The memory of a device as it is now. Raises ValueError: a device that cannot be used."""
    from shoal.engine.open import usable_device
    from shoal.engine.spill import ONE_IN, free_memory, free_on_card
    from shoal.engine.wide_products import HALVES, MOST_NUMBERS, multiplies_slowly
    from shoal.measure.divergence import CHUNK_ELSEWHERE
    from shoal.measure.gram import OTHER_CHUNK_BYTES

    base = process_memory()
    widened = MOST_NUMBERS if any(map(multiplies_slowly, HALVES)) else 0
    machine = Machine(base, free_memory() + base, free_memory() // ONE_IN, widened=widened)
    where = usable_device(device)
    if where.type != "cuda":
        return machine
    free = free_on_card(where)
    # These are the updates of a chunk in a scan, and its geometry.
    chunks = {"scan": 2 * OTHER_CHUNK_BYTES, "logits": N_DIVERGENCE * 4 * CHUNK_ELSEWHERE}
    return Machine(CONTEXT, free + CONTEXT, free // ONE_IN, **chunks, host=machine)


def process_memory() -> int:
    """Bytes of this process now, the libraries a run needs included: they are imported first."""
    import accelerate  # noqa: F401  (a run that reads layers from disk imports it)
    import torch  # noqa: F401

    from shoal.checkpoint import blueprint  # noqa: F401  (and transformers with it)
    from shoal.show.chart_files import can_draw

    can_draw()  # The call loads what pictures are drawn with.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        # There is no such file outside Linux; a process with these libraries takes this much there.
        return 600 << 20
