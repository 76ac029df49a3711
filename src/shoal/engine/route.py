"""The route of a pass: which layers have to run for a set of students, so that equal histories run once.

All students start in one node, boundary 0. At each layer the students of a node part by what they do there: those that skip
the layer stay in their node, and each group of equal steps moves on to a new one. The route depends on the students alone, so
it is found once per pass and holds for every batch, whatever the order in which layers and batches are run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.engine.student import Step, Student

History = tuple[object, ...]
"""What was done to boundary 0 to arrive at a node. Equal histories of one batch give equal states, also in another pass."""

START = 0
"""The node of boundary 0."""


@dataclass(frozen=True, eq=False)
class Hop:
    """One layer run by all students that are alike up to there: from the states of node ``before`` to those of ``after``.

    Attributes:
        is_watched: the observed student is among them, so the layer's inner taps belong to this hop.
        is_shared: other students of a later pass are likely to begin with it: several do now, or the first one does (the
            teacher, as a rule), or there is but one beside the first.
    """

    layer: int
    step: Step
    before: int
    after: int
    is_watched: bool
    is_shared: bool


@dataclass(frozen=True, eq=False)
class Route:
    """All hops of a pass.

    Attributes:
        hops: by layer, in the order in which they are run.
        ends: the node at which each student ends, in the order of the students.
        watched: the node of the observed student at every boundary (empty without one).
        histories: of each node; None where it rests on values or modules, which may change from pass to pass.
    """

    hops: tuple[tuple[Hop, ...], ...]
    ends: tuple[int, ...]
    watched: tuple[int, ...]
    histories: tuple[History | None, ...]


def route_of(students: Sequence[Student], n_layers: int, *, watched: int | None = None) -> Route:
    """The route of some students through the first ``n_layers`` layers.

    Args:
        watched: index of the student whose stream is observed.
    """
    groups: list[tuple[int, list[int]]] = [(START, list(range(len(students))))]
    histories: list[History | None] = [()]
    hops: list[tuple[Hop, ...]] = []
    nodes_watched: list[int] = []
    for layer in range(n_layers):
        if watched is not None:
            nodes_watched.append(_node_of(groups, watched))
        here: list[Hop] = []
        after: list[tuple[int, list[int]]] = []
        for node, step, members in split_by_step(groups, students, layer):
            if step.action == "skip":
                after.append((node, members))
                continue
            is_shared = len(members) > 1 or 0 in members or len(students) <= 2
            hop = Hop(layer, step, node, len(histories), watched in members, is_shared)
            histories.append(_history_after(histories[node], layer, step))
            here.append(hop)
            after.append((hop.after, members))
        hops.append(tuple(here))
        groups = after
    if watched is not None:
        nodes_watched.append(_node_of(groups, watched))
    ends = tuple(_node_of(groups, member) for member in range(len(students)))
    return Route(tuple(hops), ends, tuple(nodes_watched), tuple(histories))


def split_by_step(
    groups: Sequence[tuple[int, list[int]]], students: Sequence[Student], layer: int
) -> list[tuple[int, Step, list[int]]]:
    """(node, step, members) of every group of students that share a node and do the same at ``layer``."""
    split: list[tuple[int, Step, list[int]]] = []
    for node, members in groups:
        by_step: dict[tuple[object, ...], list[int]] = {}
        for member in members:
            by_step.setdefault(students[member].step(layer).key, []).append(member)
        split.extend((node, students[alike[0]].step(layer), alike) for alike in by_step.values())
    return split


@dataclass(frozen=True)
class Work:
    """What of a route has to be done for one batch.

    Attributes:
        hops: those that have to be run, by layer.
        borrowed: nodes whose states are read and come from an earlier pass.
    """

    hops: tuple[tuple[Hop, ...], ...]
    borrowed: frozenset[int]

    @property
    def n_runs(self) -> int:
        """Times that a layer is run."""
        return sum(len(here) for here in self.hops)


def work_for(route: Route, wanted: Sequence[int], *, is_known: Callable[[int], bool], is_tapped: Callable[[Hop], bool]) -> Work:
    """The hops that lead to all ``wanted`` nodes.

    Args:
        is_known: the states of a node are kept from an earlier pass.
        is_tapped: a hop that has to run whatever is known, because something inside its layer is observed.
    """
    needed, made = set(wanted), {START}
    hops: list[tuple[Hop, ...]] = []
    for there in reversed(route.hops):
        here = tuple(hop for hop in there if is_tapped(hop) or (hop.after in needed and not is_known(hop.after)))
        needed.update(hop.before for hop in here)
        made.update(hop.after for hop in here)
        hops.append(here)
    return Work(tuple(reversed(hops)), frozenset(needed - made))


def _node_of(groups: Sequence[tuple[int, list[int]]], member: int) -> int:
    return next(node for node, members in groups if member in members)


def _history_after(before: History | None, layer: int, step: Step) -> History | None:
    if before is None or step.overrides or step.module is not None:
        return None
    return (*before, (layer, step.key))
