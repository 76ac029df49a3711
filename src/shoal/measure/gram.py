"""Every pairwise score of every span in one pass, from the inner products of layer updates.

Per token the L updates delta_l = x_{l+1} - x_l are multiplied with each other once, (L, D) x (D, L): under 0.1 % of a large
model's forward. All (L + 1) L / 2 spans follow from block sums (measure/geometry.py). Kept: sums over samples, nothing else.

Shapes: B samples, T tokens, D hidden size, L layers, E = L + 1 boundaries, S spans, K criteria, W token weightings, P policies.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from shoal.engine.tensors import exact_bmm
from shoal.engine.view import DecoderView, Tap
from shoal.measure.anatomy import Anatomy
from shoal.measure.criteria import CRITERIA, TOKENS
from shoal.measure.geometry import span_ends, span_geometry
from shoal.measure.sinks import massive_tokens, real_lengths, sink_tokens
from shoal.words.records import stable_hash
from shoal.words.types import Batch, SpanTable

CHUNK_BYTES = {"cpu": 8 << 20}
"""Updates held at once: on a CPU they should stay in cache, elsewhere fewer and larger products win."""
OTHER_CHUNK_BYTES = 1 << 30
MIN_CHUNK = 16

N_PARTS = 4
"""Disjoint parts of the samples whose means are kept beside the whole, to see how much a choice depends on the text."""


class GramObserver:
    """Sums of every criterion over samples, for every span and every choice of tokens (see measure/sinks.py).

    A sample counts once per policy, by the mean over its tokens of that policy; a sample without such tokens does not count.
    Tokens whose stream is exactly zero at some boundary have no direction there and count nowhere (``n_zero`` says how many).
    """

    def __init__(self, n_layers: int) -> None:
        n_spans = n_layers * (n_layers + 1) // 2
        scores = (len(CRITERIA), n_spans, len(TOKENS))
        self.n_layers = n_layers
        self._deltas: Tensor | None = None
        self._sums: dict[str, Tensor] = {
            "score": torch.zeros(scores, dtype=torch.float64),
            "score_squared": torch.zeros(scores, dtype=torch.float64),
            "score_parts": torch.zeros(N_PARTS, *scores, dtype=torch.float64),
            "n_samples_parts": torch.zeros(N_PARTS, len(TOKENS), dtype=torch.int64),
            "norm": torch.zeros(n_layers + 1, len(TOKENS), dtype=torch.float64),
            "norm_squared": torch.zeros(n_layers + 1, len(TOKENS), dtype=torch.float64),
            "n_samples": torch.zeros(len(TOKENS), dtype=torch.int64),
            "n_tokens": torch.zeros(len(TOKENS), dtype=torch.int64),
            "n_massive": torch.zeros(n_layers + 1, dtype=torch.int64),
            "n_zero": torch.zeros((), dtype=torch.int64),
        }

    # -- observing ---------------------------------------------------------------------------------------------------

    def taps(self, view: DecoderView) -> Sequence[Tap]:
        return [Tap("boundary", index) for index in range(self.n_layers + 1)]

    @torch.no_grad()
    def update(self, batch: Batch, values: Mapping[Tap, Tensor]) -> None:
        states = [values[Tap("boundary", index)] for index in range(self.n_layers + 1)]
        self._sums = {name: total.to(states[0].device) for name, total in self._sums.items()}
        ids_BT = batch.ids_BT.cpu()
        for sample, length in enumerate(real_lengths(batch)):
            grams_TLL, norms_ET = self._inner_products([h_BTD[sample, :length] for h_BTD in states])
            self._add_sample(grams_TLL, norms_ET, part=fold_of_text(ids_BT[sample, :length]))

    def _inner_products(self, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """<delta_i, delta_j> and ‖x_l‖ of the tokens of one sample, chunk by chunk, in fp32 (in fp64 for fp64 states)."""
        n_tokens, hidden = states[0].shape
        deltas_TLD = self._delta_buffer(states[0])
        grams_TLL = deltas_TLD.new_empty(n_tokens, self.n_layers, self.n_layers)
        # The sums are fp64, because the chord of a small angle is a difference of squared lengths.
        norms_ET = deltas_TLD.new_empty(self.n_layers + 1, n_tokens, dtype=torch.float64)
        for tokens in _chunks(n_tokens, len(deltas_TLD)):
            chunk_TLD = deltas_TLD[: tokens.stop - tokens.start]
            before = states[0][tokens].to(chunk_TLD.dtype)
            norms_ET[0, tokens] = torch.linalg.vector_norm(before, dim=-1, dtype=torch.float64)
            for layer in range(self.n_layers):
                after = states[layer + 1][tokens].to(chunk_TLD.dtype)
                torch.sub(after, before, out=chunk_TLD[:, layer])
                norms_ET[layer + 1, tokens] = torch.linalg.vector_norm(after, dim=-1, dtype=torch.float64)
                before = after
            grams_TLL[tokens] = exact_bmm(chunk_TLD, chunk_TLD.mT)
        return grams_TLL, norms_ET

    def _delta_buffer(self, like_TD: Tensor) -> Tensor:
        """(chunk, L, D), as long as the longest sample at most; kept, since fresh pages would cost as much as the products."""
        dtype = torch.promote_types(like_TD.dtype, torch.float32)
        budget = CHUNK_BYTES.get(like_TD.device.type, OTHER_CHUNK_BYTES)
        chunk = min(len(like_TD), max(MIN_CHUNK, budget // (self.n_layers * like_TD.shape[1] * dtype.itemsize)))
        deltas_TLD = self._deltas
        is_like = deltas_TLD is not None and (deltas_TLD.dtype, deltas_TLD.device) == (dtype, like_TD.device)
        if deltas_TLD is None or not is_like or len(deltas_TLD) < chunk:
            self._deltas = deltas_TLD = None  # The smaller tensor is let go before the larger one is taken.
            deltas_TLD = torch.empty(chunk, self.n_layers, like_TD.shape[1], dtype=dtype, device=like_TD.device)
            self._deltas = deltas_TLD
        return deltas_TLD

    def _add_sample(self, grams_TLL: Tensor, norms_ET: Tensor, *, part: int) -> None:
        massive_ET = massive_tokens(norms_ET)
        self._sums["n_massive"] += massive_ET.sum(dim=1)
        sinks_T = sink_tokens(massive_ET)
        last_T = torch.zeros_like(sinks_T)
        last_T[-1] = True
        live_T = norms_ET.all(dim=0)
        self._sums["n_zero"] += (~live_T).sum()
        if not bool(live_T.all()):
            grams_TLL, norms_ET, sinks_T, last_T = grams_TLL[live_T], norms_ET[:, live_T], sinks_T[live_T], last_T[live_T]
        weights_TW = torch.stack([last_T, ~sinks_T, sinks_T], dim=1).double()
        n_criteria, n_spans, _ = self._sums["score"].shape
        scores_KSW = weights_TW.new_zeros(n_criteria, n_spans, weights_TW.shape[1])
        assert self._deltas is not None
        for tokens in _chunks(len(grams_TLL), len(self._deltas)):
            geometry = span_geometry(grams_TLL[tokens], norms_ET[:, tokens])
            for row, criterion in enumerate(CRITERIA.values()):
                scores_KSW[row] += criterion.per_token(geometry) @ weights_TW[tokens]
        n_tokens_P = _by_policy(weights_TW.sum(dim=0)).long()
        self._sums["n_tokens"] += n_tokens_P
        self._sums["n_samples"] += (n_tokens_P > 0).long()
        self._sums["n_samples_parts"][part] += (n_tokens_P > 0).long()
        for name, sums in (("score", scores_KSW), ("norm", norms_ET @ weights_TW)):
            mean = _by_policy(sums) / n_tokens_P.clamp(min=1)
            self._sums[name] += mean
            self._sums[f"{name}_squared"] += mean.square()
            if name == "score":
                self._sums["score_parts"][part] += mean

    def state(self) -> dict[str, Tensor]:
        return {name: total.cpu().clone() for name, total in self._sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from saved sums.

        Raises:
            ValueError: the sums are of another depth or another set of criteria.
        """
        ours = {name: total.shape for name, total in self._sums.items()}
        theirs = {name: total.shape for name, total in state.items()}
        if ours != theirs:
            raise ValueError(f"saved sums have shapes {theirs}; this scan needs {ours}: scan again")
        self._sums = {name: state[name].clone() for name in ours}

    # -- results -----------------------------------------------------------------------------------------------------

    def tables(self) -> list[SpanTable]:
        """One table per criterion and policy, in the order of ``CRITERIA`` and ``TOKENS``."""
        sums = self.state()
        mean, stderr = mean_and_stderr(sums["score"], sums["score_squared"], sums["n_samples"])
        parts_RKSP = (sums["score_parts"] / sums["n_samples_parts"][:, None, None]).numpy()  # NaN for a part without samples
        return [
            SpanTable(
                criterion=name,
                tokens=policy,
                values=as_table(mean[row, :, column], self.n_layers),
                stderr=as_table(stderr[row, :, column], self.n_layers),
                unit=criterion.unit,
                higher_is_more_redundant=criterion.higher_is_more_redundant,
                n_samples=int(sums["n_samples"][column]),
                parts=np.stack([as_table(part[row, :, column], self.n_layers) for part in parts_RKSP]),
            )
            for row, (name, criterion) in enumerate(CRITERIA.items())
            for column, policy in enumerate(TOKENS)
        ]

    def anatomy(self) -> Anatomy:
        sums = self.state()
        mean, stderr = mean_and_stderr(sums["norm"], sums["norm_squared"], sums["n_samples"])
        n_tokens = dict(zip(TOKENS, sums["n_tokens"].tolist(), strict=True))
        return Anatomy(
            norm_rest=tuple(mean[:, TOKENS.index("rest")].tolist()),
            norm_rest_stderr=tuple(stderr[:, TOKENS.index("rest")].tolist()),
            norm_sink=tuple(mean[:, TOKENS.index("sink")].tolist()),
            norm_sink_stderr=tuple(stderr[:, TOKENS.index("sink")].tolist()),
            n_massive=tuple(sums["n_massive"].tolist()),
            n_sinks=n_tokens["sink"],
            n_tokens=n_tokens["every"],
            n_zero=int(sums["n_zero"]),
            n_samples=int(sums["n_samples"][TOKENS.index("every")]),
        )


def mean_and_stderr(total: Tensor, squares: Tensor, n: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean over n samples and its standard error, sqrt(variance / n) with n - 1 in the variance; NaN where undefined."""
    mean = torch.where(n > 0, total / n, torch.nan)
    variance = (squares - n * mean.square()).clamp(min=0.0) / (n - 1)
    stderr = torch.where(n > 1, (variance / n).sqrt(), torch.nan)
    return mean.numpy(), stderr.numpy()


def as_table(values_S: np.ndarray, n_layers: int) -> np.ndarray:
    """(L+1, L+1) with ``values[start, stop]``, NaN where there is no span."""
    starts, stops = span_ends(n_layers)
    table = np.full((n_layers + 1, n_layers + 1), np.nan)
    table[starts.numpy(), stops.numpy()] = values_S
    return table


def fold_of_text(ids_T: Tensor) -> int:
    """The part a sample belongs to, by the hash of its real tokens: whatever the order, the batching or the worker."""
    return int(stable_hash(ids_T.cpu().contiguous().numpy().tobytes()), 16) % N_PARTS


def _by_policy(by_weight: Tensor) -> Tensor:
    """Sums over (last, rest, sink) tokens to sums over the policies of ``TOKENS``, on the last dimension."""
    last, rest, sink = by_weight.unbind(dim=-1)
    return torch.stack([last, rest, rest + sink, sink], dim=-1)


def _chunks(n: int, chunk: int) -> Iterator[slice]:
    for first in range(0, n, chunk):
        yield slice(first, min(first + chunk, n))
