"""The best neurons of the removed layers for the MLP of the layer before a cut, at equal width.

A neuron is one input of the MLP's output map. Candidates are the layer's own neurons and the best of the removed layers
(``neuron_pool``). Least squares on all candidates towards the fit's target gives each candidate a share. The candidates whose
absence would cost most stay, as many as the layer had, and the output map is solved on them. The layer keeps its shapes.

Source: own; the cost of leaving an input out of a least-squares fit, |m_i|^2 / (A^-1)_ii, is that of Optimal Brain Surgeon
(Hassibi and Stork 1993). Width pruning picks neurons of one layer by such a solve; here they come from the layers that go.

Shapes: B samples, T positions, D hidden size, F neurons of the layer, P candidates, E = P + 1, N tokens, k maps stacked in one
weight.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoal.engine.view import Tap
from shoal.fit.sites.linear_map import LinearMap
from shoal.fit.sites.site import MapKind, SiteForm
from shoal.fit.solve import Solution, share, solve, squared_error
from shoal.fit.sums import MapSums, no_sums

FLOOR = 1e-6
"""The least ridge of the solve on all candidates, which are many, and may be alike."""

RIDGE = 1e-3
"""Ridge of the solve on all candidates, in units of the inputs' mean second moment. A sweep solves the map again, with a
cross-validated ridge, once the attention's map is set."""


class _Read(Exception):
    """Ends an MLP's forward once its neurons are known."""


@dataclass(frozen=True)
class NeuronRows:
    """One parameter whose rows belong to neurons: ``axis`` holds k maps of F rows each."""

    name: str
    axis: int
    k: int

    def rows(self, value: Tensor, n: int) -> Tensor:
        """The parameter with the neurons (n of them) last: (..., k, n)."""
        return value.unflatten(self.axis, (self.k, n)).movedim((self.axis, self.axis + 1), (-2, -1))

    def joined(self, rows: Tensor) -> Tensor:
        """Back from :meth:`rows`."""
        return rows.movedim((-2, -1), (self.axis, self.axis + 1)).flatten(self.axis, self.axis + 1).contiguous()


@dataclass(frozen=True, eq=False)
class Neurons:
    """The MLP of the layer before a cut, to be filled from ``pool``.

    Attributes:
        map: its output map. ``mlp``: the module, whose code runs the candidates.
        path: path of the MLP inside the layer; ``parts``: its parameters besides the output map.
        pool: the rows of all candidates in every part, (..., k, P); the layer's own come first.
        written_FD: the output map as it is.
    """

    layer: int
    map: LinearMap
    mlp: nn.Module
    path: str
    parts: tuple[NeuronRows, ...]
    pool: dict[str, Tensor]
    written_FD: Tensor
    form: ClassVar[SiteForm] = "neurons"
    kind: ClassVar[MapKind] = "mlp"
    # Values of the MLP for each group of candidates, and how many of the group count; made when they are first needed.
    _chunks: list[tuple[dict[str, Tensor], int]] = field(default_factory=list)

    @property
    def tap(self) -> Tap:
        return Tap("mlp_in", self.layer)

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*(f"{self.path}.{part.name}" for part in self.parts), *self.map.parameters)

    @property
    def n_pool(self) -> int:
        return self.pool[self.parts[0].name].shape[-1]

    def inputs(self, seen_BTD: Tensor) -> Tensor:
        """(B, T, P): what every candidate gives, run through the MLP's own code in groups of as many as it has."""
        width = self.map.n_inputs
        if not self._chunks:
            for first in range(0, self.n_pool, width):
                chosen_F = torch.arange(first, first + width) % self.n_pool
                self._chunks.append((self._values(chosen_F), min(width, self.n_pool - first)))
        inner = self.map.path.removeprefix(self.path + ".")
        return torch.cat([neurons_of(self.mlp, inner, own, seen_BTD)[..., :n] for own, n in self._chunks], dim=-1)

    def no_sums(self, device: torch.device) -> MapSums:
        return no_sums(self.n_pool, self.map.n_outputs, device=device)

    def solve(self, folds: list[MapSums], *, ridge: float | None) -> Solution:
        """Which candidates stay, and the change of the output map over all of them: minus what it was where its own go."""
        (sums,) = folds
        written_PD = self._written(sums.hh_EE.device)
        ridge = RIDGE if ridge is None else ridge
        try:
            # Cost of each candidate for predicting the target minus the stream without any MLP output.
            cost_P = saliency(moved(sums, written_PD), ridge=max(ridge, FLOOR))
        except ValueError:  # The candidates say nothing, so the layer keeps its own neurons.
            return _nothing(sums)
        kept_F = cost_P.argsort(descending=True, stable=True)[: self.map.n_inputs].sort().values
        gone_P = torch.ones(self.n_pool, dtype=torch.bool, device=kept_F.device)
        gone_P[kept_F] = False
        left = moved(sums, written_PD * gone_P[:, None])  # What is missing once the layer's own neurons that go are gone.
        of_kept = part_of(left, kept_F)
        try:
            found = solve([of_kept], bias=self.map.has_bias, ridge=ridge)
        except ValueError:
            return _nothing(sums)
        change_ED = sums.hr_ED.new_zeros(self.n_pool + 1, self.map.n_outputs)
        change_ED[:-1] = -written_PD * gone_P[:, None]
        change_ED[kept_F] = found.change_ED[:-1]
        change_ED[-1] = found.change_ED[-1]
        return replace(
            found,
            change_ED=change_ED,
            r2=share(squared_error(sums, change_ED), float(sums.rr)),
            r2_folds=None,
        )

    def changed(self, parameters: Mapping[str, Tensor], change_ED: Tensor) -> dict[str, Tensor]:
        rows_PD = self._written(change_ED.device) + change_ED[:-1]
        writes_P = (rows_PD != 0).any(1)  # A neuron that goes writes exactly nothing.
        kept_F = writes_P.logical_not().int().argsort(stable=True)[: self.map.n_inputs].sort().values
        values = {f"{self.path}.{name}": value for name, value in self._values(kept_F).items()}
        weight = self.map.parameters[0]
        rows_FD = (rows_PD[kept_F] / self.map.gain).to(parameters[weight].device)
        values[weight] = (rows_FD if self.map.is_transposed else rows_FD.mT).to(parameters[weight].dtype).contiguous()
        for name in self.map.parameters[1:]:
            step_D = change_ED[-1] / self.map.gain
            values[name] = (parameters[name].double() + step_D.to(parameters[name].device)).to(parameters[name].dtype)
        return values

    def scaled(self, parameters: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return self.map.scaled(parameters, factor)

    def _values(self, chosen_F: Tensor) -> dict[str, Tensor]:
        """Parameters of the MLP that holds these candidates."""
        return {
            part.name: part.joined(self.pool[part.name].index_select(-1, chosen_F.to(self.pool[part.name].device)))
            for part in self.parts
        }

    def _written(self, device: torch.device) -> Tensor:
        """(P, D): what a unit of each candidate adds to the stream now; a candidate from another layer adds nothing."""
        own_FD = self.written_FD.to(device, torch.float64) * self.map.gain
        return torch.nn.functional.pad(own_FD, (0, 0, 0, self.n_pool - len(own_FD)))


def saliency(sums: MapSums, *, ridge: float) -> Tensor:
    """(P,) by how much the ridge objective on all candidates grows without each: |m_i|^2 / (A^-1)_ii. The constant is left out.

    Raises:
        ValueError: the second moments are singular, or not finite.
    """
    a_PP = sums.hh_EE[:-1, :-1].clone()
    a_PP.diagonal().add_(ridge * sums.mean_diagonal)
    root_PP, info = torch.linalg.cholesky_ex(a_PP)
    if int(info) or not bool(root_PP.isfinite().all()):
        raise ValueError("the second moments of the candidates are singular")
    del a_PP
    m_PD = torch.cholesky_solve(sums.hr_ED[:-1], root_PP)
    return m_PD.square().sum(1) / diagonal_of_inverse(root_PP)


def _nothing(sums: MapSums) -> Solution:
    """No change at all: the layer keeps its own neurons."""
    change_ED = torch.zeros_like(sums.hr_ED)
    n_tokens, n_sinks = int(sums.n_tokens), int(sums.sink_E[-1])
    return Solution(change_ED, math.inf, 0.0, None, 1.0, 0.0, n_tokens, n_sinks)


def diagonal_of_inverse(root_PP: Tensor, *, width: int = 1024) -> Tensor:
    """(P,) of A^-1 from the lower factor of A, some columns at a time: the whole inverse would be as large again."""
    columns = []
    for first in range(0, len(root_PP), width):
        n = min(width, len(root_PP) - first)
        ones_Pw = root_PP.new_zeros(len(root_PP), n)
        ones_Pw[first : first + n].fill_diagonal_(1.0)
        columns.append(torch.linalg.solve_triangular(root_PP, ones_Pw, upper=False).square().sum(0))
    return torch.cat(columns)


@torch.no_grad()
def neurons_of(mlp: nn.Module, inner: str, values: Mapping[str, Tensor], z_BTD: Tensor) -> Tensor:
    """(B, T, F): what the output map (``inner``) of an MLP with other values reads."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Read

    handle = mlp.get_submodule(inner).register_forward_pre_hook(stop)
    try:
        torch.func.functional_call(mlp, dict(values), (z_BTD,))
    except _Read:
        pass
    finally:
        handle.remove()
    return seen[0].reshape(*z_BTD.shape[:-1], -1)


def moved(sums: MapSums, by_PD: Tensor) -> MapSums:
    """The sums of the same tokens with ``h by`` more missing."""
    hb_ED = sums.hh_EE[:, :-1] @ by_PD
    rr = sums.rr + 2 * (by_PD * sums.hr_ED[:-1]).sum() + (by_PD * hb_ED[:-1]).sum()
    return replace(sums, hr_ED=sums.hr_ED + hb_ED, rr=rr, sink_r_D=sums.sink_r_D + sums.sink_E[:-1] @ by_PD)


def part_of(sums: MapSums, kept_F: Tensor) -> MapSums:
    """The sums of some of the inputs."""
    at_E = torch.cat([kept_F, kept_F.new_tensor([len(sums.hh_EE) - 1])])
    return replace(sums, hh_EE=sums.hh_EE[at_E][:, at_E], hr_ED=sums.hr_ED[at_E], sink_E=sums.sink_E[at_E])
