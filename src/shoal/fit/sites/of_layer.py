"""Which sites of a layer are solved for, in which order, and why others are left.

Whether a site can be set is found by running the layer on a probe, so there is no table of families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoal.engine.view import DecoderView, Reading
from shoal.fit.fit_result import CannotRefit
from shoal.fit.sites.folded_map import find_output
from shoal.fit.sites.linear_map import find_map
from shoal.fit.sites.norm_gain import find_gain
from shoal.fit.sites.site import MapKind, Site
from shoal.words.types import Batch

Find = Callable[..., Site[Any]]
"""``find(view, layer, kind, reading=..., h_BTD=...)``: the site of a sublayer; raises CannotRefit where it has none."""

WHOLE: tuple[Find, ...] = (find_map, find_output, find_gain)
"""The most of a sublayer that has a closed form: its output map; a map folded into its experts; the gain of its norm."""

INSTEAD: dict[str, str] = {
    "weight": "its output map is refitted",
    "output": "a map of its output is folded into the weights that end it",
    "bias": "its bias is refitted",
    "gain": "the gain of that norm is refitted",
}
"""For each form of site, the words that say it was taken in place of a better one."""


@dataclass(frozen=True)
class Sites:
    """What a fit solves for in each of its layers.

    Attributes:
        kinds: sublayers, solved one after the other, each against what is missing after the one before.
        finds: ways to set a sublayer; the first that has a closed form is taken.
        gathers: True: where a cut follows, or MLPs are gone right before, the layer's MLP first takes the best neurons of what
            is gone.
    """

    kinds: tuple[MapKind, ...]
    finds: tuple[Find, ...] = WHOLE
    gathers: bool = False

    def without(self, off: frozenset[str]) -> Sites:
        """The same for a layer that lacks some sublayers: what they write is zero, whatever they are set to."""
        return replace(self, kinds=tuple(kind for kind in self.kinds if kind not in off)) if off else self

    def of(self, view: DecoderView, layer: int, probe: Reading) -> tuple[list[Site[Any]], list[str]]:
        """The sites of a layer in the order of their solves, and the reasons why no more are set."""
        found: dict[MapKind, Site[Any]] = {}
        reasons: list[str] = []
        for kind in dict.fromkeys(self.kinds):
            site, why_not = self._first(view, layer, kind, probe)
            if site is not None:
                found[kind] = site
            instead = "" if site is None else f"; {INSTEAD[site.form]}"
            reasons += [reason + instead for reason in why_not[:1]]
        order = [found[kind] for kind in self.kinds if kind in found]
        return [one for i, one in enumerate(order) if i == 0 or one is not order[i - 1]], reasons

    def _first(self, view: DecoderView, layer: int, kind: MapKind, probe: Reading) -> tuple[Site[Any] | None, list[str]]:
        why_not: list[str] = []
        for find in self.finds:
            try:
                return find(view, layer, kind, reading=probe, h_BTD=probe.h_BTD), why_not
            except CannotRefit as reason:
                why_not.append(str(reason))
        return None, why_not

    def refuse_none(self, view: DecoderView, layers: Iterable[int], probe: Reading) -> None:
        """Before any work.

        Raises:
            CannotRefit: none of the layers has anything to set; says why the first has not.
        """
        reasons: list[str] = []
        for layer in layers:
            found, why = self.of(view, layer, probe)
            if found:
                return
            reasons += why
        raise CannotRefit(f"nothing can be refitted: {reasons[0]}; use --repair none")


def probe_of(view: DecoderView, batches: Sequence[Batch]) -> Reading:
    """One sample to try sites on, at boundary 0: whether a site can be set does not depend on the state it is tried on."""
    first = batches[0]
    return view.read(Batch(first.ids_BT[:1], None if first.mask_BT is None else first.mask_BT[:1]))
