"""One contiguous span by any table of scores. LLM-Streamline (arXiv 2403.19135, arg-max of the mean cosine) and UIDL
(arXiv 2403.17887, arg-min of the mean angle).

A replacement that inherits the first layers of its span is scored over them too, as LLM-Streamline does with one: n + 1
layers are compared, the first of them stays and is trained. Where candidates are repaired before they are compared, they are
those of plain removal.
"""

import math
from collections.abc import Iterator

from shoal.edits.plan import Candidate
from shoal.select.request import Evidence, Request
from shoal.words.types import Span


def span_by(evidence: Evidence, request: Request) -> Iterator[Candidate]:
    """Spans of ``request.n`` layers (one more is scored, and stays, where a replacement inherits it), best first.

    Raises:
        ValueError: no such table.
    """
    # These are scored on exactly the layers that go.
    goes_only = evidence.is_late(request.by) or not request.put_back.scores_inherited
    n_inherited = 0 if goes_only else request.put_back.inherits
    return _ranked(evidence, request, name=f"span {request.by}", n_inherited=n_inherited)


def plain_span_by(evidence: Evidence, request: Request) -> Iterator[Candidate]:
    """As :func:`span_by`, scored over exactly the layers that go, whatever is put back."""
    return _ranked(evidence, request, name=f"plain span {request.by}", n_inherited=0)


def _ranked(evidence: Evidence, request: Request, *, name: str, n_inherited: int) -> Iterator[Candidate]:
    table = evidence.table(request)
    n = request.n + n_inherited
    scored = [Span(start, start + n) for start in range(request.n_layers - n + 1)]
    scored = [span for span in scored if not math.isnan(table[span])]
    for span in sorted(scored, key=lambda span: (table.cost(span), -span.start)):
        layers = tuple(span.layers)[n_inherited:]
        if evidence.reason_against(request, layers) is None:
            yield request.candidate(layers, by=name, score=table[span])
