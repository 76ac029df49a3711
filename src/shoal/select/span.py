"""One contiguous span by any table of scores. LLM-Streamline (arXiv 2403.19135, arg-max of the mean cosine) and UIDL
(arXiv 2403.17887, arg-min of the mean angle).

A replacement that inherits the first layers of its span is scored over them too, as LLM-Streamline does with one: n + 1
layers are compared, the first of them stays and is trained. Where candidates are repaired before they are compared, they are
those of plain removal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from shoal.select.request import PATCHED, Picked, Tables, Wanted
from shoal.words.types import Span


def span_by(tables: Tables, wanted: Wanted) -> Iterator[Picked]:
    """Spans of ``wanted.n`` layers (one more is scored, and stays, where a replacement inherits it), best first.

    Raises:
        ValueError: no such table.
    """
    goes_only = wanted.by == PATCHED or not wanted.put_back.scores_inherited  # exactly the layers that go
    return _ranked(tables, wanted, n_inherited=0 if goes_only else wanted.put_back.inherits)


def plain_span_by(tables: Tables, wanted: Wanted) -> Iterator[Picked]:
    """As :func:`span_by`, scored over exactly the layers that go, whatever is put back."""
    return _ranked(tables, wanted, n_inherited=0)


def _ranked(tables: Tables, wanted: Wanted, *, n_inherited: int) -> Iterator[Picked]:
    table = wanted.table(tables)
    n = wanted.n + n_inherited
    scored = [Span(start, start + n) for start in range(wanted.n_layers - n + 1)]
    scored = [span for span in scored if not math.isnan(table[span])]
    for span in sorted(scored, key=lambda span: (table.cost(span), -span.start)):
        layers = tuple(span.layers)[n_inherited:]
        if wanted.reason_against(layers) is None:
            yield Picked(layers, table[span])
