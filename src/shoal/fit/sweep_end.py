"""Where a sweep ends: behind a cut, when the layers that are left would hardly change what is still missing.

A layer that is refitted takes a share g of the squared miss on held-out samples. If the n layers that are left gained as the
last two did in the mean, together they would take 1 - (1 - g)^n of it; the sweep goes on while that is at least ``WORTH``. Two
layers, because one may gain nothing between two that do. On a model whose later layers do not gain, they are most of the time
of a sweep (docs/log.md). What the rule cannot see is a gain that begins behind two layers that had none.

A layer before a cut, or without one of its sublayers, is always fitted: it brings a miss of its own, and the count begins anew.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_result import LayerFit

WORTH = 0.02
"""Share of the squared miss. Near the teacher KL grows with the squared miss, and the KL that decides whether a repair stands
has a standard error of some 5 % itself."""

N_LAST = 2


@dataclass(eq=False)
class SweepEnd:
    """Follows the gains of a sweep.

    Attributes:
        layers: all that would be fitted, front to back; ``always``: those of them that are fitted in any case.
        config: a sweep whose solves stand whatever they gain (``keep: always``) goes to its last layer.
    """

    layers: Collection[int]
    always: Collection[int]
    config: FitConfig
    _gains: list[float] = field(default_factory=list)

    def add(self, found: LayerFit) -> None:
        """Count a layer that was fitted."""
        if found.layer in self.always:
            self._gains.clear()
        else:
            self._gains.append(1 - found.error_after / found.error_before if found.error_before else 0.0)

    def passes(self, layer: int) -> bool:
        """Whether the layer stays as it is, and the walk goes on to one that is fitted in any case."""
        return layer not in self.always and not self._goes_on(sum(one >= layer for one in self.layers))

    def is_over(self, layer: int) -> bool:
        """Whether nothing behind this layer is fitted any more."""
        n_left = sum(one > layer for one in self.layers)
        return n_left > 0 and not any(one > layer for one in self.always) and not self._goes_on(n_left)

    def _goes_on(self, n_left: int) -> bool:
        if self.config.keep == "always" or len(self._gains) < N_LAST:
            return True
        mean = sum(self._gains[-N_LAST:]) / N_LAST
        return 1 - (1 - mean) ** n_left >= WORTH
