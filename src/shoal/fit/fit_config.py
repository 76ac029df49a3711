"""How much text a repair reads, and how its tokens count. Plain data, free of torch."""

from typing import Literal

from pydantic import Field

from shoal.words.counts import TokenCount
from shoal.words.records import Record

FEWEST_TOKENS = 48_000
TOKENS_PER_INPUT = 40

LINEAR_ERROR = "linear_error/rest"
"""The score of a span that a fit measures: what the best linear map leaves of its change (:mod:`shoal.fit.linear_error`)."""


class FitConfig(Record):
    """The closed-form repair.

    Attributes:
        tokens: tokens of the ``training`` slice to read; None: 40 per input of the widest map, at least 48 k, or what the text
            holds.
        weights: a token's squared miss counts ``relative`` to its squared norm, or all tokens count alike (``plain``).
        sinks: tokens of 20 times the median norm are met ``exact``ly in the mean, or ``counted`` like all others.
        ridge: the ridge in units of the inputs' mean second moment; None: cross-validation chooses it.
        keep: a solve stands ``if_better`` on the held-out samples, or ``always``, as the papers have it.
        solve: the values of a replacement by ``least_squares``, or from the ``ratio`` of mean magnitudes behind and before the
            span, where its closed form has one (``hadamard``: LinearPatch's own formula).
    """

    tokens: TokenCount | None = None
    weights: Literal["relative", "plain"] = "relative"
    sinks: Literal["exact", "counted"] = "exact"
    ridge: float | None = Field(default=None, ge=0)
    keep: Literal["if_better", "always"] = "if_better"
    solve: Literal["least_squares", "ratio"] = "least_squares"

    def n_tokens(self, widest: int) -> int:
        """Tokens to ask for, where ``widest`` is the number of inputs of the widest map."""
        return self.tokens or max(FEWEST_TOKENS, TOKENS_PER_INPUT * widest)
