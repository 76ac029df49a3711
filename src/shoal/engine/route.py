"""The route of a pass: which layers have to run for a set of students, so that equal histories run once.

All students start in one node, boundary 0. At each stop the students of a node part by what they do there: those that do
nothing stay in their node, and each group of equal steps moves on to a new one. A stop is the place of a layer, or the first,
second, ... thing that students put in behind it. The route depends on the students alone, so
it is found once per pass and holds for every batch, whatever the order in which layers and batches are run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from shoal.engine.student import Step, Student

History = tuple[object, ...]
"""What was done to boundary 0 to arrive at a node. Equal histories of one batch give equal states, also in another pass."""

START = 0
"""The node of boundary 0."""


@dataclass(frozen=True, eq=False)
class Hop:
    """One step of all students that are alike up to there: from the states of node ``before`` to those of ``after``.

    Attributes:
        is_watched: the observed student is among them and the step is a layer in its own place, so the layer's inner taps
            belong to this hop.
        is_shared: other students of a later pass are likely to begin with it: several do now, or the first one does (the
            teacher, as a rule), or there is but one beside the first.
    """

    step: Step
    before: int
    after: int
    is_watched: bool
    is_shared: bool


@dataclass(frozen=True, eq=False)
class Route:
    """All hops of a pass.

    Attributes:
        hops: by stop, in the order in which they are run.
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
    tree = _Tree(len(students), watched)
    nodes_watched = []
    for layer in range(n_layers):
        nodes_watched.append(tree.node_of(watched))
        tree.stop([student.step(layer) for student in students], is_own_place=True)
        for steps in zip_longest(*(student.behind(layer) for student in students)):
            tree.stop(steps, is_own_place=False)
    nodes_watched.append(tree.node_of(watched))
    ends = tuple(tree.node_of(member) for member in range(len(students)))
    return Route(tuple(tree.hops), ends, () if watched is None else tuple(nodes_watched), tuple(tree.histories))


class _Tree:
    """The nodes that students have reached, as the route grows stop by stop."""

    def __init__(self, n_students: int, watched: int | None) -> None:
        self._groups: list[tuple[int, list[int]]] = [(START, list(range(n_students)))]
        self._n_students, self._watched = n_students, watched
        self.histories: list[History | None] = [()]
        self.hops: list[tuple[Hop, ...]] = []

    def stop(self, steps: Sequence[Step | None], *, is_own_place: bool) -> None:
        """All students take their step of this stop; None: nothing.

        Args:
            is_own_place: the stop is the place of a layer, not something behind it.
        """
        here: list[Hop] = []
        after: list[tuple[int, list[int]]] = []
        for node, step, members in split_by_step(self._groups, steps):
            if step is None:
                after.append((node, members))
                continue
            is_shared = len(members) > 1 or 0 in members or self._n_students <= 2
            hop = Hop(step, node, len(self.histories), is_own_place and self._watched in members, is_shared)
            self.histories.append(_history_after(self.histories[node], step))
            here.append(hop)
            after.append((hop.after, members))
        self.hops.append(tuple(here))
        self._groups = after

    def node_of(self, member: int | None) -> int:
        """Where a student stands; the start for None."""
        return next((node for node, members in self._groups if member in members), START)


def split_by_step(
    groups: Sequence[tuple[int, list[int]]], steps: Sequence[Step | None]
) -> list[tuple[int, Step | None, list[int]]]:
    """(node, step, members) of every group of students that share a node and do the same at a stop.

    Args:
        steps: of each student; None: nothing.
    """
    split: list[tuple[int, Step | None, list[int]]] = []
    for node, members in groups:
        by_step: dict[tuple[object, ...] | None, list[int]] = {}
        for member in members:
            step = steps[member]
            by_step.setdefault(None if step is None else step.key, []).append(member)
        split.extend((node, steps[alike[0]], alike) for alike in by_step.values())
    return split


@dataclass(frozen=True)
class Work:
    """What of a route has to be done for one batch.

    Attributes:
        hops: those that have to be run, by stop.
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


def _history_after(before: History | None, step: Step) -> History | None:
    if before is None or step.overrides or step.module is not None:
        return None
    return (*before, step.key)
