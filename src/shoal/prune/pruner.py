"""What an entry of the table of pruners says of itself, and how it runs. Free of torch: recipes and help read the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shoal.prune.amount import Amount
from shoal.prune.input_sums import InputNeeds, InputSums

if TYPE_CHECKING:
    from torch import Tensor


class Thin(Protocol):
    """Sets weights of one map to zero."""

    def __call__(self, w_DF: Tensor, sums: InputSums | None, amount: Amount) -> Tensor:
        """The map with zeros, perhaps with other values where none are; the weight that came in stays as it is.

        Args:
            w_DF: (outputs, inputs), fp64 or fp32.
            sums: over what the map reads; None where the pruner reads weights alone.
            amount: how much is set to zero.
        """
        ...


@dataclass(frozen=True)
class Pruner:
    """An entry of :data:`shoal.prune.table.PRUNERS`.

    Attributes:
        name, about: the name in recipes and on the command line, and one line for people.
        reads: what it needs to know of the text.
        thin: the function.
        papers: arXiv numbers.
    """

    name: str
    about: str
    reads: InputNeeds
    thin: Thin
    papers: tuple[str, ...] = ()
