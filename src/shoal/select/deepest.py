"""The deepest n layers but the last: layers L-1-n .. L-2, 0-based. UIDL's simple rule (arXiv 2403.17887, section 4.4).

No text is read and no layer is run. The paper counts layers from 1, so its "(L-n) to (L-1)" keeps the last layer.
"""

from collections.abc import Iterator

from shoal.edits.plan import Candidate
from shoal.select.request import Evidence, Request


def deepest_layers(evidence: Evidence, request: Request) -> Iterator[Candidate]:
    """Windows of ``request.n`` layers from the deepest one that leaves out the last layer upwards; no table is read."""
    for stop in range(request.n_layers - 1, request.n - 1, -1):
        layers = tuple(range(stop - request.n, stop))
        if evidence.reason_against(request, layers) is None:
            yield request.candidate(layers, by="deepest")
