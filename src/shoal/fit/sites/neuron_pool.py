"""Candidates for the MLP before a cut: the neurons of the removed layers that would write most.

The teacher passes the removed layers on its way to the goal, and their neurons are gathered as it passes. A candidate has to
read what the kept layer's MLP reads. What the removed layer's norm makes of the stream is, channel by channel, a multiple of
what the kept layer's norm makes of it (with a shift, for norms with a bias): that multiple is folded into the neuron's weights.
Source: own. The choice among the candidates is in ``neurons``.

The neurons of the MLP may not read each other. This is tried, not assumed: an MLP run on the rows of its weakest neurons, drawn
with repetition, must return exactly those neurons.

Shapes: B samples, T positions, D hidden size, F neurons of the layer, P candidates, N tokens, k maps stacked in one weight.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.edits.replace.family_mlp import is_transposed
from shoal.engine.families import sublayer
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.engine.workers import Workers
from shoal.fit.boundary_states import BoundaryStates
from shoal.fit.fit_config import FitConfig
from shoal.fit.held_out import WEIGHTS, real_and_sinks
from shoal.fit.sites.linear_map import LinearMap, find_map
from shoal.fit.sites.neurons import NeuronRows, Neurons, neurons_of
from shoal.fit.sites.site import CannotRefit, is_close, tolerance_of
from shoal.words.progress import tell
from shoal.words.types import Batch

EXTRA = 1.0
"""Candidates from the removed layers, as a multiple of the layer's own neurons. Sums over candidates grow with its square."""

RANKING_TOKENS = 16_384
"""Tokens whose energies say which neurons of the removed layers would write most."""

PROBES = 64
"""Random states on which norms are compared and the MLP is tried."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Batches with the student's states before a layer, and the folds of their samples; fold 0 is held out."""

    readings: Sequence[Reading]
    inputs: BoundaryStates
    folds: Sequence[Tensor]


class NeuronPool:
    """Collects candidates while the teacher passes the removed layers, each of which is read once.

    Args:
        probe: a sample to try the layer on.
        ranking: states before the layer; they say which neurons would write most.
    Attributes:
        map, mlp, path, inner: the MLP's output map; its module, that module's path in the layer, and the map's path in the MLP.
        parts: the MLP's other parameters; ``own``: the layer's rows of them, with the neurons last.
        written_FD: the output map as it is.
        norm: path of the norm that the MLP reads.
        x_ND, z_ND: random states, and what that norm makes of them.
        read: per batch of the ranking what the MLP reads (N, D) and the weights of those tokens (N,).
        found, score: rows of the best candidates so far, and the energy that each would write, best first.
    Raises:
        CannotRefit: the MLP has no neurons that can be set one by one.
    """

    @torch.no_grad()
    def __init__(
        self,
        view: DecoderView,
        layer: int,
        *,
        probe: Reading,
        ranking: Ranking,
        config: FitConfig,
        workers: Workers,
    ) -> None:
        self.view, self.layer, self.workers = view, layer, workers
        where = f"layer {layer} of this {view.family} model"
        with view.residency.layer(layer) as module:
            self.map = find_map(view, layer, "mlp", reading=probe, h_BTD=probe.h_BTD)
            inside = sublayer(module, "mlp")
            if inside is None or not self.map.path.startswith(inside[0] + "."):
                raise CannotRefit(f"{where}: its MLP is no module of its own")
            self.path, self.mlp = inside
            try:
                inspect.signature(self.mlp.forward).bind(probe.h_BTD)
            except TypeError:
                raise CannotRefit(f"{where}: its MLP reads more than the normed stream") from None
            self.inner = self.map.path.removeprefix(self.path + ".")
            self.parts = _parts(self.mlp, self.inner, self.map, width=view.hidden_size, where=where)
            self.norm = _norm_before(view, layer, self.path, probe)
            values = dict(self.mlp.named_parameters())
            # Copies are kept, because a layer that is read from disk is in memory no longer than it runs.
            self.own = {part.name: part.rows(values[part.name].detach(), self.map.n_inputs).clone() for part in self.parts}
            weight = self.mlp.get_submodule(self.inner).weight
            assert isinstance(weight, Tensor)
            self.written_FD = (weight if self.map.is_transposed else weight.mT).detach().clone()
            self.x_ND = torch.randn(PROBES, view.hidden_size, generator=torch.Generator().manual_seed(0)).to(view.device)
            self.z_ND = _normed(module.get_submodule(self.norm), self.x_ND)
            self._refuse_coupled(where)
            self.read: list[tuple[Tensor, Tensor]] = []
            read = zip(ranking.readings, ranking.inputs, ranking.folds, strict=True)
            for i, (reading, h_BTD, folds_B) in enumerate(read):
                tell("rank neurons", i, len(ranking.readings))
                seen: dict[Tap, Tensor] = {}
                tap = Tap("mlp_in", layer)
                with view.tapped(layer, [tap], seen):
                    view.run_layer(layer, h_BTD, reading)
                real_BT, sinks_BT = real_and_sinks(reading.batch, h_BTD, h_BTD)
                chosen_BT = real_BT & ~sinks_BT & (folds_B != 0)[:, None]  # The held-out samples may not choose.
                if not chosen_BT.any():  # A last batch may hold nothing else.
                    continue
                self.read.append((seen[tap].reshape(h_BTD.shape)[chosen_BT], WEIGHTS[config.weights](h_BTD[chosen_BT])))
        self.n_most = int(EXTRA * self.map.n_inputs)
        self.found: dict[str, Tensor] = {}
        self.score = torch.zeros(0, dtype=torch.float64)

    def _refuse_coupled(self, where: str) -> None:
        """Raises CannotRefit: the MLP's neurons read each other, or are not as many as its output map reads."""
        n = self.map.n_inputs
        z_BTD = self.z_ND.to(self.view.dtype)[None]
        ours = neurons_of(self.mlp, self.inner, {}, z_BTD)
        if ours.shape[-1] != n:
            raise CannotRefit(f"{where}: its MLP has {ours.shape[-1]} neurons where its output map reads {n}")
        # The weakest neurons that answer at all are drawn again and again: a norm over the neurons would lift them.
        energy_F = ours.double().square().sum((0, 1))
        weak_F = energy_F.argsort(stable=True)[int((energy_F == 0).sum()) :][: max(1, n // 8)]
        if not len(weak_F):
            raise CannotRefit(f"{where}: no neuron of its MLP answers")
        drawn_F = weak_F.repeat(-(-n // len(weak_F)))[:n]
        mixed = {part.name: part.joined(self.own[part.name].index_select(-1, drawn_F)) for part in self.parts}
        theirs = neurons_of(self.mlp, self.inner, mixed, z_BTD)
        if not is_close(theirs.double(), ours[..., drawn_F].double(), tolerance_of(z_BTD)):
            raise CannotRefit(f"{where}: the neurons of its MLP read each other")

    @torch.no_grad()
    def visit(self, layer: int) -> None:
        """Take the candidates of a removed layer; it has none where its MLP or norm is of another form."""
        with self.view.residency.layer(layer) as module:
            try:
                mlp, norm = module.get_submodule(self.path), module.get_submodule(self.norm)
            except AttributeError:
                return
            rows = self._folded(dict(mlp.named_parameters()), _normed(norm, self.x_ND))
            if rows is None or type(mlp) is not type(self.mlp):
                return
            values = {part.name: part.joined(rows[part.name]) for part in self.parts}
            weight = mlp.get_submodule(self.inner).weight
            assert isinstance(weight, Tensor)
            energy_F = torch.zeros(self.map.n_inputs, dtype=torch.float64, device=self.view.device)
            for z_ND, weights_N in self.read:
                h_NF = neurons_of(mlp, self.inner, values, z_ND[None])[0]
                energy_F += (h_NF.float().square() * weights_N[:, None]).sum(0, dtype=torch.float64)
            written_F = (weight if self.map.is_transposed else weight.mT).detach().double().square().sum(1)
        score_F = self.workers.sum({"energy": energy_F})["energy"].to(written_F.device) * written_F
        for own in rows.values():  # A row may overflow when the norm's gain is folded into it; such a neuron is no candidate.
            score_F = score_F.where(own.isfinite().flatten(0, -2).all(0), 0.0)
        score_P = torch.cat([self.score.to(score_F.device), score_F.nan_to_num(0.0, posinf=0.0)])
        best = score_P.argsort(descending=True, stable=True)[: min(self.n_most, int((score_P > 0).sum()))]
        self.score = score_P[best]
        both = {name: torch.cat([self.found[name], own], dim=-1) if self.found else own for name, own in rows.items()}
        self.found = {name: value.index_select(-1, best) for name, value in both.items()}

    def site(self) -> Neurons:
        """The MLP with all candidates that were found.

        Raises:
            CannotRefit: no removed layer had any.
        """
        if not len(self.score):
            where = f"layer {self.layer} of this {self.view.family} model"
            raise CannotRefit(f"{where}: the removed layers have no neurons that read what its MLP reads")
        pool = {name: torch.cat([own, self.found[name]], dim=-1) for name, own in self.own.items()}
        return Neurons(self.layer, self.map, self.mlp, self.path, self.parts, pool, self.written_FD)

    def _folded(self, values: Mapping[str, Tensor], theirs_ND: Tensor) -> dict[str, Tensor] | None:
        """A removed layer's neurons, rescaled to read this layer's normed stream.

        Fed with *this* layer's normed input, the returned rows compute what the removed layer's neurons computed behind their
        own norm.

        Args:
            values: the removed MLP's parameters.
            theirs_ND: what the removed layer's norm makes of the random states.
        Returns:
            Rows per parameter, or None where the two norms do not differ by a map of each channel, or the parameters are of
            another form.
        """
        ours_ND = self.z_ND
        ours_0, theirs_0 = ours_ND - ours_ND.mean(0), theirs_ND - theirs_ND.mean(0)
        ratio_D = (ours_0 * theirs_0).sum(0) / ours_0.square().sum(0).clamp(min=1e-30)
        shift_D = theirs_ND.mean(0) - ratio_D * ours_ND.mean(0)
        if not is_close(ours_ND * ratio_D + shift_D, theirs_ND, 1e-3):
            return None
        shifts = bool(shift_D.norm() > 1e-4 * theirs_ND.std())
        n, rows = self.map.n_inputs, {}
        for part in self.parts:
            value = values.get(part.name)
            if value is None or value.shape != part.joined(self.own[part.name]).shape or not value.is_floating_point():
                return None
            own = part.rows(value.detach(), n)
            if value.ndim == 2:
                if shifts and not any(one.name == part.name.removesuffix("weight") + "bias" for one in self.parts):
                    return None
                rows[part.name] = (own.double() * ratio_D[:, None, None]).to(value.dtype)
            else:
                weight = next(one for one in self.parts if one.name == part.name.removesuffix("bias") + "weight")
                moved_kF = torch.einsum("dkf,d->kf", weight.rows(values[weight.name].detach(), n).double(), shift_D)
                rows[part.name] = (own.double() + moved_kF).to(value.dtype)
        return rows


def ranking_batches(batches: Sequence[Batch]) -> int:
    """How many of the batches, from the first one, hold the tokens that rank."""
    n_tokens = 0
    for count, batch in enumerate(batches, start=1):
        n_tokens += batch.ids_BT.numel()
        if n_tokens >= RANKING_TOKENS:
            return count
    return len(batches)


def _parts(mlp: nn.Module, inner: str, output: LinearMap, *, width: int, where: str) -> tuple[NeuronRows, ...]:
    """The parameters of an MLP besides its output map.

    Raises:
        CannotRefit: a parameter has no rows that belong to neurons.
    """
    parts, names = [], {name for name, _ in mlp.named_parameters()}
    for name, value in mlp.named_parameters():
        owner, _, last = name.rpartition(".")
        if owner == inner:
            continue
        axis = 1 if value.ndim == 2 and is_transposed(mlp.get_submodule(owner)) else 0
        k, rest = divmod(value.shape[axis], output.n_inputs)
        fits = k >= 1 and not rest and value.is_floating_point()
        is_map = value.ndim == 2 and last == "weight" and value.shape[1 - axis] == width
        is_bias = value.ndim == 1 and last == "bias" and f"{owner}.weight" in names
        if not fits or not (is_map or is_bias):
            raise CannotRefit(f"{where}: {name!r} of its MLP has no rows of neurons")
        parts.append(NeuronRows(name, axis, k))
    return tuple(parts)


def _norm_before(view: DecoderView, layer: int, path: str, probe: Reading) -> str:
    """Path of the module whose output the MLP reads, found by running the layer on the probe.

    Raises:
        CannotRefit: no child of the layer returns what the MLP reads.
    """
    outputs: dict[str, Any] = {}
    read: list[Any] = []
    with view.residency.layer(layer) as module:
        handles = [
            child.register_forward_hook(lambda _, args, output, name=name: outputs.__setitem__(name, output))
            for name, child in module.named_children()
            if name != path
        ]
        tap = Tap("mlp_in", layer)
        seen: dict[Tap, Tensor] = {}
        try:
            with view.tapped(layer, [tap], seen):
                view.run_layer(layer, probe.h_BTD, probe)
        finally:
            for handle in handles:
                handle.remove()
        read.append(seen[tap])
    for name, output in outputs.items():
        if isinstance(output, Tensor) and output.numel() == read[0].numel() and output.data_ptr() == read[0].data_ptr():
            return name
    raise CannotRefit(f"layer {layer} of this {view.family} model: its MLP does not read the output of a norm of the layer")


def _normed(norm: nn.Module, x_ND: Tensor) -> Tensor:
    """What a norm makes of (N, D) states, with states, parameters and buffers in fp64."""
    values = {name: value.detach().double() for name, value in [*norm.named_parameters(), *norm.named_buffers()]}
    answer = torch.func.functional_call(norm, values, (x_ND.double(),))
    return answer.double()
