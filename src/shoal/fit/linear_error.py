"""Spans ranked by what is missing after the best repair of the residual stream, from sums alone.

A span changes the stream from x to y. The best affine map ``x + x M + b`` of the stream leaves an error that follows from the
d x d second moments of x and of (x, y - x), so one pass ranks every span of a length without solving for any layer. A cosine
cannot: a large change that is linear costs nothing to repair, and a small one that is not costs all of itself.

Two folds of the samples, each scored by the map of the other one. Ghosted Layers (arXiv 2605.15491) has the unweighted map.

Shapes: B samples, T positions, D hidden size, N tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from shoal.engine.passes import run_pass
from shoal.engine.view import DecoderView, Tap
from shoal.engine.workers import ALONE, Workers
from shoal.fit.fit_config import LINEAR_ERROR
from shoal.fit.solve import RIDGES, best_ridge, ridge_change
from shoal.fit.sums import MapSums, no_sums
from shoal.measure.sinks import massive_tokens, real_lengths
from shoal.words.progress import tell
from shoal.words.records import stable_hash
from shoal.words.types import Batch, Span, SpanTable

N_FOLDS = 2

"""Name of the table: error after the best affine map of the stream, over every token but the sinks."""


class LinearErrorObserver:
    """Sums of the best affine map in place of each of some spans; additive.

    Args:
        spans: the spans to rank; each of them takes ``N_FOLDS`` x 2 matrices of D x D in fp64.
    """

    def __init__(self, spans: Sequence[Span], *, hidden_size: int, device: torch.device | str = "cpu") -> None:
        self.spans = tuple(spans)
        self._sums = {span: [no_sums(hidden_size, hidden_size, device=device) for _ in range(N_FOLDS)] for span in self.spans}

    def taps(self, view: DecoderView) -> Sequence[Tap]:
        return [Tap("boundary", index) for index in sorted({end for span in self.spans for end in (span.start, span.stop)})]

    @torch.no_grad()
    def update(self, batch: Batch, values: Mapping[Tap, Tensor]) -> None:
        for row, length in enumerate(real_lengths(batch)):
            fold = int(stable_hash(batch.ids_BT[row, :length].cpu().contiguous().numpy().tobytes()), 16) % N_FOLDS
            for span, folds in self._sums.items():
                x_ND, y_ND = (values[Tap("boundary", end)][row, :length].float() for end in (span.start, span.stop))
                norms_2N = torch.stack([torch.linalg.vector_norm(one, dim=-1) for one in (x_ND, y_ND)])
                alive_N = norms_2N[1] > 0  # A target of length zero has no relative error.
                sinks_N = massive_tokens(norms_2N).any(0)
                weights_N = torch.where(alive_N, norms_2N[1].square().reciprocal(), 0.0)
                folds[fold].add_tokens(x_ND, y_ND - x_ND, weights_N=weights_N, sinks_N=sinks_N)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{span.start}-{span.stop}.{fold}.{field.name}": getattr(sums, field.name).cpu().clone()
            for span, folds in self._sums.items()
            for fold, sums in enumerate(folds)
            for field in fields(MapSums)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned, of the same spans.

        Raises:
            ValueError: the sums are of other spans.
        """
        ours = self.state()
        if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in state.items()}:
            raise ValueError("saved sums are of other spans or another width; measure again")
        self._sums = {
            span: [
                MapSums(
                    *(state[f"{span.start}-{span.stop}.{fold}.{field.name}"].to(old.rr.device) for field in fields(MapSums))
                )
                for fold, old in enumerate(folds)
            ]
            for span, folds in self._sums.items()
        }

    def errors(self) -> Iterator[tuple[Span, float]]:
        """Mean over tokens of |y' - y|^2 / |y|^2 where y' is what the best map of the other fold makes of x; sinks aside.

        Solved when it is asked for, span by span. The ridge is the best one of ``RIDGES``. NaN where a fold has no token.
        """
        return ((span, _error(folds)) for span, folds in self._sums.items())


def _error(folds: Sequence[MapSums]) -> float:
    n_tokens = sum(float(fold.n_tokens) for fold in folds)
    if not all(float(fold.n_tokens) for fold in folds):
        return math.nan
    _, error = best_ridge(folds, RIDGES, lambda sums, ridge: ridge_change(sums, ridge, bias=True))
    return error / n_tokens


@torch.no_grad()
def linear_errors(
    view: DecoderView,
    batches: Sequence[Batch],
    *,
    spans: Sequence[Span],
    after_batch: Callable[[Batch], None] | None = None,
    workers: Workers = ALONE,
) -> SpanTable:
    """The table ``linear_error/rest`` of some spans, in one pass up to the last boundary they need; NaN for all others.

    Args:
        workers: the processes that share the pass; all of them get the same table.
    Raises:
        ValueError: NaN or infinite states.
    """
    observer = LinearErrorObserver(spans, hidden_size=view.hidden_size, device=view.device)
    stop = max(span.stop for span in spans)
    run_pass(view, batches, observers=[observer], stop=stop, after_batch=after_batch, workers=workers)
    values = np.full((view.n_layers + 1, view.n_layers + 1), np.nan)
    for i, (span, error) in enumerate(observer.errors(), start=1):
        values[span.start, span.stop] = error
        tell("rank by linear error, solve", i, len(spans))
    criterion, tokens = LINEAR_ERROR.split("/")
    return SpanTable(
        criterion=criterion,
        tokens=tokens,
        values=values,
        stderr=np.full_like(values, np.nan),
        unit="share of the squared norm after the span",
        higher_is_more_redundant=False,
        n_samples=sum(len(batch.ids_BT) for batch in batches),
    )


def bytes_per_span(hidden_size: int) -> int:
    """Memory of one span's sums."""
    return N_FOLDS * 2 * (hidden_size + 1) ** 2 * 8
