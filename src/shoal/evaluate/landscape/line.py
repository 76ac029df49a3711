"""What was measured on straight lines in weight space. Plain data; losses are nats per token of one text."""

from typing import Literal

from shoal.words.records import Provenance, Record


class LinePoint(Record):
    """The loss at ``t`` of the way; ``kl`` to the model at the start, None where only losses were asked for."""

    t: float
    loss: float
    kl: float | None = None


class Removal(Record):
    """One layer on its way out: its output maps times 1 - t, so that at t = 1 it is gone, exactly.

    Attributes:
        points: t from 0 to 1.
        bump: how far the highest point lies above the straight line between the ends; 0: the loss rises evenly, or slower.
        slope: of the loss at the start, per unit of t, from the first two points.
    """

    layer: int
    points: tuple[LinePoint, ...]

    @property
    def cost(self) -> float:
        """What the layer's removal adds to the loss."""
        return self.points[-1].loss - self.points[0].loss

    @property
    def bump(self) -> float:
        first, last = self.points[0].loss, self.points[-1].loss
        return max(0.0, *(one.loss - first - one.t * (last - first) for one in self.points))

    @property
    def slope(self) -> float:
        first, second = self.points[:2]
        return (second.loss - first.loss) / (second.t - first.t)


class Barrier(Record):
    """How far the loss half way lies above the mean of two ends, for some part of the weights.

    Attributes:
        part: ``layer``: one alone; ``first``, ``last``: so many from the front or the back; ``all``: everything.
        n: the layer, or how many.
        halfway: loss of A with the part half way to B; ``swapped``: of A with B's part.
        of_models: above the mean loss of the two whole models, as in arXiv 2307.06966.
        of_ends: above the mean loss of A and of A with B's part: the ends of the line that is walked.
        stderr: standard error of ``of_models`` over samples, paired.
        at_random: loss of A with the part as far from A's as B's lies, in random directions: the mean of some draws, and
            ``random_spread``, their standard deviation. None: of single layers alone is it asked.
    """

    part: Literal["layer", "first", "last", "all"]
    n: int
    halfway: float
    swapped: float
    of_models: float
    of_ends: float
    stderr: float
    at_random: float | None = None
    random_spread: float | None = None


class ReadOut(Record):
    """How well the next token is read off a boundary by a linear map to the last boundary and the model's own head.

    Attributes:
        accuracy: share of held-out tokens; ``nll`` of them, nats per token.
        n_tokens: of the fit; ``n_held_out``: of the figures.
    """

    boundary: int
    accuracy: float
    nll: float
    n_tokens: int
    n_held_out: int


class Landscape(Record):
    """``landscape.json``.

    Attributes:
        model, other: A and B; B is None where one model was looked at.
        removal: of every layer that can be turned down; ``left``: why others cannot.
        barriers, blend: between A and B: half way, and all of A moved towards B.
        read_outs: of every boundary.
        provenance: of A and the text.
    """

    model: str
    other: str | None = None
    removal: tuple[Removal, ...] = ()
    left: tuple[str, ...] = ()
    barriers: tuple[Barrier, ...] = ()
    blend: tuple[LinePoint, ...] = ()
    read_outs: tuple[ReadOut, ...] = ()
    provenance: Provenance

    def barrier(self, part: str) -> tuple[Barrier, ...]:
        """The barriers of one kind of part, in order."""
        return tuple(one for one in self.barriers if one.part == part)

    @property
    def separable_from(self) -> int | None:
        """The first boundary from which on a read-out has at least half of the accuracy that the last layer adds."""
        if not self.read_outs:
            return None
        first, last = self.read_outs[0].accuracy, self.read_outs[-1].accuracy
        need = first + HALF * (last - first)
        return next((one.boundary for one in self.read_outs if one.accuracy >= need), None)


HALF = 0.5
"""Of what the layers add to the accuracy of a read-out: before that, a local loss on tokens asks for what is not there yet."""
