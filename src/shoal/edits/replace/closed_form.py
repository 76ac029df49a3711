"""What a replacement says of its closed form: how its values follow from d x d sums over tokens.

The best change ``[x, 1] @ change`` of the stream is fitted to the change of the span, y - x, so an infinite ridge leaves the
stream as it is. ``x`` is what the module reads. A form that may be any linear map of it is a ridge regression, which the fit
solves; a narrower form says its own best change.

Shapes: N tokens, D hidden size, E = D + 1 (the last row belongs to the constant 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Moments(Protocol):
    """Weighted second moments over tokens, fp64.

    Attributes:
        hh_EE: of what is read, with the constant 1.
        hr_ED: of that with what the stream misses, y - x.
        mean_diagonal: mean second moment of what is read, the unit of a ridge.
    """

    @property
    def hh_EE(self) -> Tensor: ...
    @property
    def hr_ED(self) -> Tensor: ...
    @property
    def mean_diagonal(self) -> float: ...


Change = Callable[[Moments, float], "Tensor"]
"""(E, D) best change of the stream from moments and a ridge in units of their mean diagonal."""


@dataclass(frozen=True)
class Ratio:
    """Values from magnitudes alone.

    Attributes:
        of: states (N, D) to the magnitudes (N, C) that are averaged over tokens, before and behind the span.
        change: mean ratios (C,) of the magnitudes behind to those before, to the (E, D) change.
    """

    of: Callable[[Tensor], Tensor]
    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClosedForm:
    """How the values of one module follow from sums.

    Attributes:
        reads: the stream (..., D) to what the module's map reads of it.
        values: a change (E, D) of this form to the module's new state.
        bias: the change has a constant, which is never shrunk.
        change: the best change where not every linear map will do; None: every one will, and the fit solves for it.
        ratio: another way to the values, from mean magnitudes; None: there is none.
    """

    reads: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], dict[str, Tensor]]
    bias: bool = False
    change: Change | None = None
    ratio: Ratio | None = None
