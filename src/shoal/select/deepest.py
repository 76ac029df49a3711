"""The deepest n layers but the last: layers L-1-n .. L-2, 0-based. UIDL's simple rule (arXiv 2403.17887, section 4.4).

No text is read and no layer is run. The paper counts layers from 1, so its "(L-n) to (L-1)" keeps the last layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from shoal.select.request import Picked, Tables, Wanted


def deepest_layers(tables: Tables, wanted: Wanted) -> Iterator[Picked]:
    """Windows of ``wanted.n`` layers from the deepest one that leaves out the last layer upwards; ``tables`` is not read."""
    for stop in range(wanted.n_layers - 1, wanted.n - 1, -1):
        layers = tuple(range(stop - wanted.n, stop))
        if wanted.reason_against(layers) is None:
            yield Picked(layers)
