"""The edits of a growing: the deepest layers that go first, and the new ones behind those that stay."""

from collections.abc import Collection

from shoal.edits.inits import INITS
from shoal.edits.insert import Insert
from shoal.select.grow_config import GrowConfig, parse_depth
from shoal.select.places import inserts


def deepest(config: GrowConfig, n_layers: int) -> tuple[int, ...]:
    """The layers that go first.

    Raises:
        ValueError: none would be left.
    """
    if config.cut >= n_layers:
        raise ValueError(f"grow.cut={config.cut} needs to be below the {n_layers} layers of the source")
    return tuple(range(n_layers - config.cut, n_layers))


def new_layers(config: GrowConfig, n_layers: int, gone: Collection[int]) -> tuple[Insert, ...]:
    """The edits that put the new layers in.

    Args:
        gone: layers of the source that do not stay.
    Raises:
        ValueError: a depth that is not above what stays; and as :func:`~shoal.select.places.inserts`.
    """
    kept = [layer for layer in range(n_layers) if layer not in set(gone)]
    init, depth = INITS.named(config.init), parse_depth(config.to, n_layers)
    if depth <= len(kept):
        cure = "give more, or use shoal compress to make it shallower" if not gone else "give more, or remove more"
        raise ValueError(f"--to {config.to} is {depth} layers, and the model has {len(kept)} before anything is put in; {cure}")
    return inserts(n_layers, depth - len(kept), init, config.where or init.where, kept=kept)
