"""What an entry of the table of repairs says of itself: its words, what it goes with, what it takes, and how it runs.

Free of torch: recipes and the command's help read the table, so an entry imports what it runs when it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from shoal.edits.replace.contract import Replacement
from shoal.words.model_shape import ModelShape

if TYPE_CHECKING:
    from shoal.edits.plan import Plan
    from shoal.fit.fit_job import FitJob
    from shoal.fit.fit_result import Refitted

TrainedOn = frozenset[Literal["stream", "logits"]]
"""What a training after the repair compares with the teacher's: states of the stream, logits, or both; empty: nothing."""

N_SUMS = 4 + 3
"""Matrices of sums alive during a solve: one per training fold, plus the sum over the folds, that sum without one fold, and its
Cholesky factor."""

EFFORTS_OF_SWEEPS = ((2, 16_000), (4, 32_000), (4, 48_000), (4, 96_000), (4, 192_000), (4, 384_000))
"""Candidates and tokens that ``--time`` may spend on one. docs/smollm2.md has what they leave."""


class Fit(Protocol):
    """Solves the cuts of a plan."""

    def __call__(self, job: FitJob, plan: Plan) -> Refitted:
        """Solve them, for the plan's student.

        Raises:
            CannotRefit: nothing of it has a closed form, or there is too little text.
        """
        ...

    def last_layer(self, plan: Plan) -> int:
        """The last layer that it stops at, for progress."""
        ...


@dataclass(frozen=True)
class RepairSize:
    """What a repair takes at most.

    Attributes:
        parameters: how many it sets in kept layers; ``layers``: in how many of them.
        solved: in each of those layers, the number of inputs of everything that is solved for, in order.
        sums: bytes of the sums of the widest thing that is solved for, with what its solve holds beside them.
        per_token: bytes for each token of a batch while the sums are taken, beyond what the layer takes itself.
    """

    parameters: int = 0
    layers: int = 0
    solved: tuple[int, ...] = ()
    sums: int = 0
    per_token: int = 0


@dataclass(frozen=True)
class Repair:
    """An entry of :data:`shoal.fit.table.REPAIRS`.

    Attributes:
        name, about: the name in recipes and on the command line, and one line for people.
        fit: what runs; None: nothing does.
        size: what it takes for a shape of model, and a number of layers that stay.
        conflict: why it does not go with a replacement (None: plain removal) and a training, or an empty text; what every
            repair refuses is in :meth:`refusal`.
        sets_replacements: it sets the values of replacements, not those of kept layers.
        compares_repaired: the tournament compares its candidates repaired; False: as they are.
        needs_layers: it is of whole layers that go, not of single sublayers.
        efforts: what ``--time`` may spend on it: candidates that compete, and tokens of the fit; the larger one leaves less KL.
        else_plain: where nothing has a closed form the plain cut stands, said aloud, instead of an error.
        comes_to: the repair that this one is where there is something to repair; empty: itself.
        ranks_by: the repair of the first round of a race, where a cheaper one tells who is clearly behind; empty: itself.
    """

    name: str
    about: str
    fit: Callable[[], Fit] | None
    size: Callable[[ModelShape, int], RepairSize]
    conflict: Callable[[Replacement | None, TrainedOn], str] = lambda replacement, trained_on: ""
    sets_replacements: bool = False
    compares_repaired: bool = True
    needs_layers: bool = False
    efforts: tuple[tuple[int, int], ...] = ()
    else_plain: bool = False
    comes_to: str = ""
    ranks_by: str = ""

    def refusal(self, replacement: Replacement | None, trained_on: TrainedOn) -> str:
        """Why this repair cannot stand in a recipe with these, or an empty text."""
        if self.fit is not None and replacement is not None and replacement.starts_as == "random":
            return (
                f"replace {replacement.name!r} starts at random, so there is no student to repair yet; use --repair none, or a "
                "replacement that starts as the identity or as a layer"
            )
        return self.conflict(replacement, trained_on)


def bytes_of_sums(n_inputs: int, n_outputs: int) -> int:
    """Bytes of the sums of one linear map, fp64: second moments of its inputs and of those with what is missing."""
    return (n_inputs + 1) * (n_inputs + 1 + n_outputs) * 8
