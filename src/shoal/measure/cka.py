"""Linear CKA between all boundaries, debiased, on sampled tokens. Off by default.

For each sample, HSIC is estimated without bias from n tokens at positions drawn before the scan, and averaged over samples:
CKA(l, m) = mean HSIC(l, m) / sqrt(mean HSIC(l, l) · mean HSIC(m, m)).
Sources: Kornblith et al. 2019 (CKA); Song et al. 2012, eq. 5 (unbiased HSIC); Nguyen et al. 2021 (averages over minibatches).
It compares the tokens of one sample with each other, so it is blind to rotations and to one scale; the head is not.

Shapes: E = L + 1 boundaries, N sampled tokens of one sample, D hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.engine.tensors import exact_bmm
from shoal.engine.view import DecoderView, Tap
from shoal.measure.geometry import span_ends
from shoal.measure.gram import as_table
from shoal.measure.sinks import massive_tokens, real_lengths, sink_tokens
from shoal.words.types import Batch, SpanTable

FEWEST_TOKENS = 4  # The unbiased estimator divides by n - 3.


def hsic_between(features_END: Tensor) -> Tensor:
    """(E, E) unbiased linear HSIC between E sets of features of the same N tokens. Source: Song et al. 2012, eq. 5.

    Raises:
        ValueError: fewer than 4 tokens.
    """
    n = features_END.shape[1]
    if n < FEWEST_TOKENS:
        raise ValueError(f"unbiased HSIC got {n} tokens; it needs at least {FEWEST_TOKENS}")
    kernel_ENN = exact_bmm(features_END, features_END.mT).double()
    kernel_ENN.diagonal(dim1=1, dim2=2).zero_()
    rows_EN = kernel_ENN.sum(dim=2)
    total_E = rows_EN.sum(dim=1)
    traces_EE = kernel_ENN.flatten(1) @ kernel_ENN.flatten(1).T
    centre_EE = total_E[:, None] * total_E / ((n - 1) * (n - 2))
    return (traces_EE + centre_EE - 2 / (n - 2) * (rows_EN @ rows_EN.T)) / (n * (n - 3))


class CkaObserver:
    """Sums of HSIC, and of the products its standard error needs, over samples.

    Args:
        n_layers: depth of the model.
        length: longest sample; positions are drawn below it.
        n_tokens: tokens per sample; sinks and padding are passed over, samples with fewer than 4 left do not count.
        seed: of the positions.
    """

    def __init__(self, n_layers: int, *, length: int, n_tokens: int = 64, seed: int = 0) -> None:
        if n_tokens < FEWEST_TOKENS:
            raise ValueError(f"n_tokens={n_tokens} needs at least {FEWEST_TOKENS}")
        self.n_layers = n_layers
        self.n_tokens = n_tokens
        self._order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
        square = (n_layers + 1, n_layers + 1)
        names = ("hsic", "hsic_squared", "hsic_by_start", "starts_by_stops")
        self._sums = {name: torch.zeros(square, dtype=torch.float64) for name in names}
        self._sums["n_samples"] = torch.zeros((), dtype=torch.int64)

    def taps(self, view: DecoderView) -> Sequence[Tap]:
        return [Tap("boundary", index) for index in range(self.n_layers + 1)]

    @torch.no_grad()
    def update(self, batch: Batch, values: Mapping[Tap, Tensor]) -> None:
        states = [values[Tap("boundary", index)] for index in range(self.n_layers + 1)]
        norms_BET = torch.stack([torch.linalg.vector_norm(h, dim=-1, dtype=torch.float64) for h in states], dim=1)
        for sample, length in enumerate(real_lengths(batch)):
            sinks_T = sink_tokens(massive_tokens(norms_BET[sample, :, :length])).cpu()
            order = self._order[self._order < length]
            chosen = order[~sinks_T[order]][: self.n_tokens].sort().values
            if len(chosen) < FEWEST_TOKENS:
                continue
            dtype = torch.promote_types(states[0].dtype, torch.float32)
            features_END = torch.stack([h_BTD[sample, chosen.to(h_BTD.device)].to(dtype) for h_BTD in states])
            # HSIC is blind to the mean over tokens; taking it out first keeps fp32 products short
            hsic_EE = hsic_between(features_END - features_END.mean(dim=1, keepdim=True)).cpu()
            own_E = hsic_EE.diagonal()
            self._sums["hsic"] += hsic_EE
            self._sums["hsic_squared"] += hsic_EE.square()
            self._sums["hsic_by_start"] += hsic_EE * own_E[:, None]
            self._sums["starts_by_stops"] += own_E[:, None] * own_E
            self._sums["n_samples"] += 1

    def state(self) -> dict[str, Tensor]:
        return {name: total.clone() for name, total in self._sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._sums = {name: state[name].clone() for name in self._sums}

    def tables(self) -> list[SpanTable]:
        cka_EE, stderr_EE = self._ratio()
        starts, stops = span_ends(self.n_layers)
        return [
            SpanTable(
                criterion="cka",
                tokens="rest",
                values=as_table(cka_EE[starts, stops].numpy(), self.n_layers),
                stderr=as_table(stderr_EE[starts, stops].numpy(), self.n_layers),
                unit="debiased linear CKA",
                higher_is_more_redundant=True,
                n_samples=int(self._sums["n_samples"]),
            )
        ]

    def _ratio(self) -> tuple[Tensor, Tensor]:
        """CKA and its standard error by the delta method: d log CKA = d h_lm / h_lm - d h_ll / 2 h_ll - d h_mm / 2 h_mm."""
        n = int(self._sums["n_samples"])
        nan = torch.full_like(self._sums["hsic"], torch.nan)
        if n == 0:
            return nan, nan
        h = self._sums["hsic"] / n
        own = h.diagonal()
        cka = h / (own[:, None] * own).sqrt()
        if n == 1:
            return cka, nan
        squared, by_start, between = (self._sums[name] / n for name in ("hsic_squared", "hsic_by_start", "starts_by_stops"))
        var_lm = squared - h.square()
        cov_start = by_start - h * own[:, None]
        cov_stop = by_start.T - h * own
        cov_own = between - own[:, None] * own
        var_own = cov_own.diagonal()
        relative = (
            var_lm / h.square()
            + 0.25 * (var_own / own.square())[:, None]
            + 0.25 * var_own / own.square()
            - cov_start / (h * own[:, None])
            - cov_stop / (h * own)
            + 0.5 * cov_own / (own[:, None] * own)
        )
        return cka, cka.abs() * (relative.clamp(min=0.0) / (n - 1)).sqrt()
