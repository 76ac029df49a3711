"""What thinning leaves besides its values: how many weights of which map are zero. Plain data."""

from collections.abc import Iterable
from typing import NamedTuple

from shoal.prune.prune_config import PruneConfig
from shoal.words.records import Record


class ThinnedMap(Record):
    """One map of a layer; experts of one weight are counted together.

    Attributes:
        role: such as ``mlp.down_proj``, the same in every layer.
        asked: the share of zeros that the allocation gave it; the mean over experts.
        n_weights, n_zeros: counted in the values that were written.
        error: squared change of what the map returns over its squared norm, on the text; None where no moments were summed.
    """

    layer: int
    role: str
    asked: float
    n_weights: int
    n_zeros: int
    error: float | None = None


class LayerZeros(Record):
    """What stands beside the values of one layer, while others are still to come."""

    maps: tuple[ThinnedMap, ...]


class Zeros(NamedTuple):
    """A count of zeros among weights."""

    n_zeros: int
    n_weights: int

    @property
    def share(self) -> float:
        return self.n_zeros / self.n_weights if self.n_weights else 0.0


class ThinResult(Record):
    """``prune.json``.

    Attributes:
        config: what was asked for; ``share``: of zeros in the maps, as resolved for this model.
        maps: front to back. ``left``: maps that were left whole, each with its reason.
        outliers: of every layer, the share of outlying weights, where the allocation looked at it.
        n_samples, n_tokens, data, data_hash: the text; nothing where none was read.
        values_digest: of the files with the values.
    """

    config: PruneConfig
    share: float
    maps: tuple[ThinnedMap, ...]
    left: tuple[str, ...] = ()
    outliers: dict[int, float] = {}
    n_samples: int = 0
    n_tokens: int = 0
    data: str = ""
    data_hash: str = ""
    seconds: float = 0.0
    values_digest: str = ""

    @property
    def total(self) -> Zeros:
        return zeros_of(self.maps)

    def by_role(self) -> dict[str, Zeros]:
        """In the order of the first layer that has the role."""
        roles = dict.fromkeys(one.role for one in self.maps)
        return {role: zeros_of(one for one in self.maps if one.role == role) for role in roles}

    def by_layer(self) -> dict[int, Zeros]:
        layers = dict.fromkeys(one.layer for one in self.maps)
        return {layer: zeros_of(one for one in self.maps if one.layer == layer) for layer in layers}

    def __str__(self) -> str:
        found, how = self.total, self.config
        pattern = f" in the pattern {how.pattern}" if how.pattern else f", allocated by {how.allocate}"
        text = f" on {self.n_tokens:,} tokens" if self.n_tokens else ", no text read"
        return (
            f"{how.method}{pattern}: {found.n_zeros:,} of {found.n_weights:,} weights of the maps are zero "
            f"({found.share:.2%}){text}, {self.seconds:.0f} s"
        )


def zeros_of(maps: Iterable[ThinnedMap]) -> Zeros:
    """Counted together."""
    every = list(maps)
    return Zeros(sum(one.n_zeros for one in every), sum(one.n_weights for one in every))


NO_FASTER = (
    "Zeros here and there make nothing faster and no file smaller: dense kernels multiply them like any other weight. They "
    "count where a runtime skips them, or where the file is packed."
)
PATTERN_FASTER = (
    "The pattern {pattern} is stored dense: plain transformers runs it as fast as the model without zeros. Kernels for sparse "
    "tensor cores read 2:4 once the weights are packed for them."
)


def speed_said(config: PruneConfig) -> str:
    """What the zeros do for speed, for people."""
    return NO_FASTER if config.pattern is None else PATTERN_FASTER.format(pattern=config.pattern)
