"""The gain of a norm between sublayer and stream, in closed form: post-norm families (Gemma 2 and 3, OLMo 2, GLM 4).

The norm returns g * n(m) per channel (or (1 + g) * n(m)), so its change is D independent regressions of what the stream misses
on n(m). A sink would fix every one of them on its own; sinks stay out.

Shapes: B samples, T positions, D hidden size, N tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoal.engine.families import contribution
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.fit.sites.site import CannotRefit, MapKind, SiteForm, gain_into_stream, is_close, on_output, tolerance_of
from shoal.fit.solve import RIDGES, Solution, effective_rank, share
from shoal.fit.sums import Sums


@dataclass(frozen=True, eq=False)
class GainSums(Sums):
    """Weighted sums over the tokens of one fold that are no sinks: n n, n r and r r per channel."""

    nn_D: Tensor
    nr_D: Tensor
    rr: Tensor
    n_tokens: Tensor
    n_sinks: Tensor

    def add_tokens(self, n_ND: Tensor, r_ND: Tensor, *, weights_N: Tensor, sinks_N: Tensor) -> None:
        w_N1 = torch.where(sinks_N, 0.0, weights_N.double())[:, None]
        n_ND, r_ND = n_ND.double(), r_ND.double()
        self.nn_D.add_((w_N1 * n_ND * n_ND).sum(0))
        self.nr_D.add_((w_N1 * n_ND * r_ND).sum(0))
        self.rr.add_((w_N1 * r_ND * r_ND).sum())
        self.n_sinks.add_(sinks_N.sum())
        self.n_tokens.add_((~sinks_N).sum())


@dataclass(frozen=True, eq=False)
class NormGainSite:
    """The gain of the norm behind a sublayer.

    Attributes:
        path: path of the norm inside the layer; ``norm``: the module itself.
        offset: the norm multiplies by ``offset + weight`` (1 in Gemma, else 0).
        gain: the stream gets this many times what the norm returns.
    """

    layer: int
    kind: MapKind
    path: str
    norm: nn.Module
    offset: float
    gain: float
    form: ClassVar[SiteForm] = "gain"

    @property
    def tap(self) -> Tap:
        return Tap("attn_out" if self.kind == "attn" else "mlp_out", self.layer)

    @property
    def parameters(self) -> tuple[str, ...]:
        return (f"{self.path}.weight",)

    def inputs(self, seen_BTD: Tensor) -> Tensor:
        return normed(self.norm, seen_BTD)

    def no_sums(self, device: torch.device) -> GainSums:
        weight = self.norm.weight
        assert isinstance(weight, Tensor)
        zeros_D = torch.zeros(len(weight), dtype=torch.float64, device=device)
        zero = zeros_D.new_zeros(())
        return GainSums(zeros_D, zeros_D.clone(), zero, zero.clone(), zero.clone())

    def solve(self, folds: list[GainSums], *, ridge: float | None) -> Solution:
        return solve_gain(folds, ridge=ridge)

    def changed(self, parameters: Mapping[str, Tensor], change_D: Tensor) -> dict[str, Tensor]:
        (name,) = self.parameters
        before = parameters[name]
        return {name: (before.double() + change_D.to(before.device) / self.gain).to(before.dtype)}

    def scaled(self, parameters: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        (name,) = self.parameters
        before = parameters[name]
        return {name: ((self.offset + before.double()) * factor - self.offset).to(before.dtype)}


def normed(norm: nn.Module, m_BTD: Tensor) -> Tensor:
    """n(m): what the norm returns for each unit of its weight."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    one, zero = (
        torch.func.functional_call(norm, {"weight": like(weight, device=m_BTD.device)}, (m_BTD,))
        for like in (torch.ones_like, torch.zeros_like)
    )
    return one - zero


@torch.no_grad()
def find_gain(view: DecoderView, layer: int, kind: MapKind, *, reading: Reading, h_BTD: Tensor) -> NormGainSite:
    """The norm that what a sublayer returns passes on its way into the stream.

    Raises:
        CannotRefit: there is none, or what leaves it is not proportional to its weight.
    """
    where = f"layer {layer} of this {view.family} model"
    with view.residency.layer(layer) as module:
        path = contribution(module, kind)
        norms = {name: one for name, one in module.named_children() if getattr(one, "weight", None) is not None}
        norms = {name: one for name, one in norms.items() if isinstance(one.weight, Tensor) and one.weight.ndim == 1}
        if path is None or not norms:
            raise CannotRefit(f"{where}: no norm follows its {kind} sublayer")
        for name, norm in norms.items():
            seen: dict[str, Tensor] = {}

            def sublayer_out(args: Any, output: Any, seen: dict[str, Tensor] = seen) -> Any:
                seen["out"] = (output[0] if isinstance(output, tuple) else output).clone()
                return output

            def norm_io(args: Any, output: Any, seen: dict[str, Tensor] = seen) -> Any:
                seen["in"], seen["normed"] = args[0].clone(), output.clone()
                return output

            with on_output(module.get_submodule(path), sublayer_out), on_output(norm, norm_io):
                view.run_layer(layer, h_BTD, reading)
            if seen.get("in") is None or seen["in"].shape != seen["out"].shape or not torch.equal(seen["in"], seen["out"]):
                continue
            gain = gain_into_stream(view, layer, kind, norm, reading=reading, h_BTD=h_BTD)
            n_BTD = normed(norm, seen["in"]).double()
            weight = norm.weight
            assert isinstance(weight, Tensor)
            for offset in (0.0, 1.0):
                expected = n_BTD * (offset + weight.double())
                if gain is not None and is_close(expected, seen["normed"].double(), tolerance_of(h_BTD)):
                    return NormGainSite(layer, kind, name, norm, offset, gain)
        raise CannotRefit(f"{where}: no norm with a gain of its own stands between its {kind} sublayer and the stream")


def solve_gain(folds: list[GainSums], *, ridge: float | None = None) -> Solution:
    """One ridge for all channels, best over folds left out in turn; then the change of the gain, (D,)."""
    total = reduce(add, folds)
    ridges = RIDGES if ridge is None else (ridge,)
    errors = [sum(_error(fold, _change(total - fold, one)) for fold in folds) for one in ridges]
    best = min(range(len(ridges)), key=lambda i: (errors[i], -ridges[i]))
    change_D, rr = _change(total, ridges[best]), float(total.rr)
    lifted_D = total.nn_D + (0.0 if math.isinf(ridges[best]) else ridges[best] * float(total.nn_D.mean()))
    return Solution(
        change_ED=change_D,
        ridge=ridges[best],
        r2=share(_error(total, change_D), rr),
        r2_folds=share(errors[best], rr),
        condition=float(lifted_D.max() / lifted_D.min()) if float(lifted_D.min()) > 0 else math.inf,
        effective_rank=effective_rank(total.nn_D),
        n_tokens=int(total.n_tokens),
        n_sinks=int(total.n_sinks),
    )


def _change(sums: GainSums, ridge: float) -> Tensor:
    if math.isinf(ridge):
        return torch.zeros_like(sums.nr_D)
    return sums.nr_D / (sums.nn_D + ridge * sums.nn_D.mean()).clamp(min=torch.finfo(torch.float64).tiny)


def _error(sums: GainSums, change_D: Tensor) -> float:
    return float(sums.rr - 2 * change_D @ sums.nr_D + (change_D.square() @ sums.nn_D))
