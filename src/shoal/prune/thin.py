"""Set weights of a student's layers to zero, front to back, each layer on what the layers before it give with their zeros.

Within a layer all sums are of the layer before it is thinned, as in Wanda's and SparseGPT's programs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoal.engine.families import output_map, sublayer
from shoal.engine.student import Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.fit.sites.of_layer import probe_of
from shoal.fit.walk import Goal, Here, walk
from shoal.prune.allocator import MapKey, ThinEvidence
from shoal.prune.amount import Amount, SparsePattern, share_of
from shoal.prune.input_sums import InputSums
from shoal.prune.maps import ThinMap, thinnable_maps
from shoal.prune.pruner import Pruner
from shoal.prune.pruners.by_wanda import wanda_score
from shoal.prune.thin_result import ThinnedMap
from shoal.prune.watch import layer_parameters, sums_of
from shoal.words.structure import runs_said
from shoal.words.types import Batch

AfterLayer = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class ThinSite:
    """A student whose maps are to be thinned, with the text.

    Attributes:
        student: as it is before; its modules and sublayers that are off stay as they are.
        batches: the text, all of it in every process.
        maps: by layer of the source that the student runs as itself, those that can be thinned.
        left: why other maps are not.
    """

    view: DecoderView
    student: Student
    batches: Sequence[Batch]
    workers: Workers = ALONE
    maps: Mapping[int, list[ThinMap]] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    def of(self, layer: int) -> dict[str, Tensor]:
        """Its parameters as the student runs them, while it is in memory."""
        step = self.student.step(layer)
        return layer_parameters(self.view, layer, None if step is None else step.overrides)

    def walk(self, after_layer: AfterLayer | None) -> Iterator[Here]:
        goals = {layer: Goal(layer + 1) for layer in self.maps}
        return walk(
            self.view,
            self.student,
            self.batches,
            goals=goals,
            teacher=False,
            after_layer=after_layer,
            workers=self.workers,
        )


@dataclass(frozen=True, eq=False)
class ThinnedLayer:
    """New values of a layer by name inside it, and what became of its maps."""

    layer: int
    values: dict[str, Tensor]
    maps: tuple[ThinnedMap, ...]


def thin_site(
    view: DecoderView,
    student: Student,
    batches: Sequence[Batch],
    *,
    pattern: SparsePattern | None = None,
    workers: Workers = ALONE,
) -> ThinSite:
    """Find the maps of a student; those of a sublayer that is off count for nothing and are no maps of it.

    Raises:
        ValueError: quantised weights; no map that can be thinned, or none that the pattern fits.
    """
    maps: dict[int, list[ThinMap]] = {}
    left: list[str] = []
    off: dict[str, list[int]] = {}
    for layer in range(view.n_layers):
        step = student.step(layer)
        if step is None or step.module is not None:
            continue
        with view.residency.layer(layer) as module:
            found, reasons = thinnable_maps(module, pattern)
            for kind in sorted(step.zeroed):
                path = _place_of(module, kind)
                found = [one for one in found if not f"{one.module}.".startswith(f"{path}.")]
                off.setdefault(kind, []).append(layer)
        left += [reason for reason in reasons if reason not in left]
        if found:
            maps[layer] = found
    left += [f"{kind} of layers {runs_said(layers)}: off, so its weights count for nothing" for kind, layers in off.items()]
    if not maps:
        raise _nothing_to_thin(view, left)
    return ThinSite(view, student, batches, workers, maps, tuple(left))


def _place_of(layer: nn.Module, kind: str) -> str | None:
    """Path of a sublayer, or of the map that ends it where it is no module."""
    inside = sublayer(layer, kind)
    return output_map(layer, kind) if inside is None else inside[0]


def refuse_unthinnable(view: DecoderView, pattern: SparsePattern | None) -> None:
    """Raises ValueError, from the shapes of the layers alone, where :func:`thin_site` would."""
    layers = view.model.get_submodule(view.layers_path)
    found = [thinnable_maps(layer, pattern) for layer in layers]
    if not any(maps for maps, _ in found):
        raise _nothing_to_thin(view, [reason for _, reasons in found for reason in reasons])


def _nothing_to_thin(view: DecoderView, left: Sequence[str]) -> ValueError:
    why = f": {left[0]}" if left else ""
    return ValueError(f"no map of this {view.family} model can be thinned{why}")


def evidence_of(
    site: ThinSite, *, after_layer: AfterLayer | None = None, outliers: dict[int, float] | None = None
) -> ThinEvidence:
    """What allocation rules may ask of the student before anything in it is zero.

    Args:
        outliers: filled with those of every layer where a rule asks for them.
    """
    shapes = {(layer, one.name): one.shape for layer, maps in site.maps.items() for one in maps}

    def weights() -> Iterator[tuple[MapKey, Tensor]]:
        for layer, maps in site.maps.items():
            with site.view.residency.layer(layer):
                parameters = site.of(layer)
                for one in maps:
                    yield (layer, one.name), one.weight(parameters)

    def measured(factor: float) -> Mapping[int, float]:
        found = {layer: share for layer, share in outlier_shares(site, factor, after_layer=after_layer)}
        if outliers is not None:
            outliers.update(found)
        return found

    return ThinEvidence(shapes, weights, measured)


@torch.no_grad()
def outlier_shares(site: ThinSite, factor: float, *, after_layer: AfterLayer | None = None) -> Iterator[tuple[int, float]]:
    """Per layer, the share of its weights whose Wanda score is above ``factor`` times the layer's mean score (OWL's D)."""
    probe = probe_of(site.view, site.batches)
    for here in site.walk(after_layer):
        parameters, maps = site.of(here.layer), site.maps[here.layer]
        sums: dict[str, InputSums] = {}
        for group in sums_of(here, maps, probe, moments=False, workers=site.workers):
            sums.update(group)

        def scores(
            maps: list[ThinMap] = maps, parameters: dict[str, Tensor] = parameters, sums: dict[str, InputSums] = sums
        ) -> Iterator[Tensor]:
            for one in maps:
                w_DF = one.weight(parameters)
                yield wanda_score(w_DF.to(torch.promote_types(w_DF.dtype, torch.float32)), sums[one.name])

        total = sum(float(score_DF.sum(dtype=torch.float64)) for score_DF in scores())
        n = sum(outputs * inputs for outputs, inputs in (one.shape for one in maps))
        above = sum(int((score_DF > factor * total / n).sum()) for score_DF in scores())
        yield here.layer, above / n


@torch.no_grad()
def thin(
    site: ThinSite,
    pruner: Pruner,
    amounts: Mapping[MapKey, Amount],
    *,
    known: Callable[[int], ThinnedLayer | None] = lambda layer: None,
    after_layer: AfterLayer | None = None,
) -> Iterator[ThinnedLayer]:
    """Thin one layer after the other; every process gets the same values.

    Args:
        amounts: of every map of the site.
        known: what an earlier run made of a layer, which is taken as it is.
    """
    if pruner.reads == "weights":
        for layer in site.maps:
            with site.view.residency.layer(layer):
                found = known(layer) or _thin_layer(site, layer, pruner, amounts, [{}])
            yield found
            if after_layer is not None:
                after_layer(layer)
        return
    probe = probe_of(site.view, site.batches)
    for here in site.walk(after_layer):
        found = known(here.layer) or _thin_here(site, here, probe, pruner, amounts)
        here.set({name: value.to(site.view.device) for name, value in found.values.items()})
        yield found


def _thin_here(site: ThinSite, here: Here, probe: Reading, pruner: Pruner, amounts: Mapping[MapKey, Amount]) -> ThinnedLayer:
    groups = sums_of(here, site.maps[here.layer], probe, moments=pruner.reads == "moments", workers=site.workers)
    return _thin_layer(site, here.layer, pruner, amounts, groups)


def _thin_layer(
    site: ThinSite,
    layer: int,
    pruner: Pruner,
    amounts: Mapping[MapKey, Amount],
    groups: Iterator[dict[str, InputSums]] | list[dict[str, InputSums]],
) -> ThinnedLayer:
    """Thin the maps of a layer, each when its sums come; without sums, all at once."""
    parameters, maps = site.of(layer), site.maps[layer]
    values = {one.parameter: parameters[one.parameter].clone() for one in maps}
    errors: dict[str, float | None] = {}
    for sums in groups:
        for one in maps:
            if pruner.reads != "weights" and one.name not in sums:
                continue
            stored_DF = one.weight(parameters)
            w_DF = stored_DF.to(torch.promote_types(stored_DF.dtype, torch.float32))
            thinned_DF = pruner.thin(w_DF, sums.get(one.name), amounts[layer, one.name])
            one.weight(values).copy_(thinned_DF)
            errors[one.name] = _error(w_DF, thinned_DF, sums.get(one.name))
    return ThinnedLayer(layer, values, tuple(_records(layer, maps, values, amounts, errors)))


def _error(before_DF: Tensor, after_DF: Tensor, sums: InputSums | None) -> float | None:
    """Squared change of what the map returns over its squared norm."""
    if sums is None or sums.moments_FF is None or sums.saw_nothing:
        return None
    w_DF, change_DF = before_DF.double(), (after_DF - before_DF).double()
    norm = float(((w_DF @ sums.moments_FF) * w_DF).sum())
    return float(((change_DF @ sums.moments_FF) * change_DF).sum()) / norm if norm > 0 else 0.0


def _records(
    layer: int,
    maps: Sequence[ThinMap],
    values: Mapping[str, Tensor],
    amounts: Mapping[MapKey, Amount],
    errors: Mapping[str, float | None],
) -> Iterator[ThinnedMap]:
    for role in dict.fromkeys(one.role for one in maps):
        same = [one for one in maps if one.role == role]
        found = [errors[one.name] for one in same]
        known = [error for error in found if error is not None]
        yield ThinnedMap(
            layer=layer,
            role=role,
            asked=sum(share_of(amounts[layer, one.name]) for one in same) / len(same),
            n_weights=sum(one.shape[0] * one.shape[1] for one in same),
            n_zeros=sum(int((one.weight(values) == 0).sum()) for one in same),
            error=sum(known) / len(known) if known else None,
        )
