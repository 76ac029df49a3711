"""Behind which layers new ones are put: pure functions of counts, as the papers place them.

``spread``: in equal groups over all layers (LLaMA Pro, arXiv 2401.02415). ``shallow``: the same in the first half of the
source, which is behind layers 1, 3, ..., 15 for 8 new layers of 32 (Llama SLayer, arXiv 2410.02330). ``deep``: in the gaps of
the second half, behind 15..30 for 16 new layers of 32 (LESA, arXiv 2502.13794). ``range``: the middle layers once more as a
whole, 8..23 behind layer 23 for 16 new layers of 32 (SOLAR, arXiv 2312.15166).
"""

import re
from collections import Counter
from collections.abc import Sequence

from shoal.edits.inits import Init
from shoal.edits.insert import Insert

FORMS = "spread, shallow, deep, range, or layers such as 3,7,11"


def inserts(n_layers: int, n_new: int, init: Init, where: str, *, kept: Sequence[int] | None = None) -> tuple[Insert, ...]:
    """The edits that put ``n_new`` layers in.

    Args:
        where: a name of :data:`~shoal.edits.inits.Where`, or the layers behind which one each is put, with commas.
        kept: the layers that run; all of them unless given. The others are no places.
    Raises:
        ValueError: nothing to put in; more than one predicted layer behind one layer;
            not one of the forms; places that do not exist, or that lie behind the last layer where
            the init needs a neighbour on either side; more layers for a range than there are.
    """
    row = list(range(n_layers)) if kept is None else sorted(kept)
    if n_new < 1:
        raise ValueError(f"{n_new} new layers are nothing to put in; ask for at least 1")
    if where == "range":
        return (_range(row, n_new, init),)
    places = _places(row, n_new, init, where, n_layers)
    counts = Counter(places)
    crowded = next((after for after, n in counts.items() if n > 1), None)
    if init.weights == "predicted" and crowded is not None:
        raise ValueError(
            f"init {init.name!r} says one layer between two, and {counts[crowded]} are asked for behind layer {crowded}; "
            "ask for fewer, or use --init interpolate"
        )
    return tuple(Insert(after=after, init=init.name, of=(after,) * n) for after, n in sorted(counts.items()))


def _range(row: Sequence[int], n_new: int, init: Init) -> Insert:
    """The middle ``n_new`` layers again, behind the last of them."""
    if init.is_between:
        raise ValueError(
            f"--where range repeats layers as they are, and init {init.name!r} blends them; use --init copy or identity"
        )
    if n_new > len(row):
        raise ValueError(
            f"--where range repeats at most the {len(row)} layers there are, {n_new} are asked for; use --where spread"
        )
    start = (len(row) - n_new) // 2
    middle = tuple(row[start : start + n_new])
    return Insert(after=middle[-1], init=init.name, of=middle)


def _places(row: Sequence[int], n_new: int, init: Init, where: str, n_layers: int) -> list[int]:
    known = dict.fromkeys(("spread", "shallow", "deep"))
    if where not in known:
        return _listed(row, n_new, init, where)
    n = len(row)
    n_shallow = sum(layer < n_layers // 2 for layer in row)
    first, stop = {"spread": (0, n), "shallow": (0, max(1, n_shallow)), "deep": (n // 2 - 1 if n > 1 else 0, n - 1 or 1)}[where]
    if init.is_between:
        stop = min(stop, n - 1)
    if stop <= first:
        raise ValueError(f"init {init.name!r} needs a layer on either side, and {n} layer is kept; use --init copy or identity")
    return [
        row[first + (i + 1) * (stop - first) // n_new - 1] if n_new <= stop - first else row[first + i % (stop - first)]
        for i in range(n_new)
    ]


def _listed(row: Sequence[int], n_new: int, init: Init, where: str) -> list[int]:
    if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", where):
        raise ValueError(f"--where {where!r} is not a place; write {FORMS}")
    places = [int(one) for one in where.split(",")]
    if len(places) != n_new:
        raise ValueError(f"--where names {len(places)} places, and {n_new} new layers are asked for; name one for each")
    absent = next((one for one in places if one not in row), None)
    if absent is not None:
        raise ValueError(f"--where {absent} is no layer that is kept; those are in {row[0]}..{row[-1]}")
    if init.is_between and row[-1] in places:
        raise ValueError(
            f"init {init.name!r} needs a layer on either side, and none is behind layer {row[-1]}; use --init copy"
        )
    return places
