"""How much of a map is set to zero: a share of its weights, or a pattern such as 2:4 along its inputs."""

import math
import re
from dataclasses import dataclass

MOST_SHARE = 0.99
"""Of a map's weights at most: a map of zeros would be a removed sublayer, which is another edit."""


@dataclass(frozen=True)
class SparsePattern:
    """Of every ``of`` neighbouring inputs of an output, ``keep`` weights stay. 2:4 is what sparse tensor cores read."""

    keep: int
    of: int

    @property
    def share(self) -> float:
        """The share that is zero."""
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


Amount = float | SparsePattern
"""A share of zeros, 0..1, or a pattern."""


def share_of(amount: Amount) -> float:
    """The share of zeros that is asked for."""
    return amount.share if isinstance(amount, SparsePattern) else amount


def n_zeros(share: float, n: int) -> int:
    """Zeros among n weights: the share rounded down, as the papers' programs do; a share made from a count gives that count."""
    return min(n, math.floor(share * n + 1e-6))


def parse_pattern(text: str) -> SparsePattern:
    """``2:4``: of every four neighbouring inputs two stay.

    Raises:
        ValueError: another form, or numbers that leave nothing to remove or to keep.
    """
    match = re.fullmatch(r"\s*(\d{1,3}):(\d{1,3})\s*", text)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(f"pattern {text!r} is not N:M with 0 < N < M; write 2:4 (of four neighbours two stay) or 4:8")
    return SparsePattern(int(match[1]), int(match[2]))
