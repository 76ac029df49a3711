"""What a pruner may know of a map's inputs: sums over the tokens it reads, padding left out, every token counted once.

Shapes: N tokens, F inputs of a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

InputNeeds = Literal["weights", "norms", "moments"]
"""What a pruner needs beside the weights: nothing, the squared norm of every input, or all second moments of the inputs."""


MOST_MOMENTS = 2 << 30
"""Bytes of second moments that are held at once; the layer is run again for the maps beyond."""


@dataclass(frozen=True, eq=False)
class InputSums:
    """Sums over tokens, fp64; they add up over batches and processes.

    Attributes:
        squares_F: of every input, the sum of squares; the diagonal of the moments where there are any.
        moments_FF: sum of x x^T; None where nobody asked for it.
        n_tokens: how many tokens the map read, a scalar.
    """

    squares_F: Tensor
    moments_FF: Tensor | None
    n_tokens: Tensor

    @property
    def saw_nothing(self) -> bool:
        """An expert that no token reached: it is thinned as if all its inputs were alike."""
        return not int(self.n_tokens)
