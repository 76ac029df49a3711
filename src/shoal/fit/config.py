"""How much text a closed-form repair reads. Plain data."""

from __future__ import annotations

from pydantic import Field

from shoal.types import Record

FEWEST_TOKENS = 200_000
TOKENS_PER_INPUT = 64


class FitConfig(Record):
    """The closed-form repair.

    Attributes:
        tokens: of the ``training`` slice; None: 64 per input of the widest map, at least 200 k, or what the text holds.
    """

    tokens: int | None = Field(default=None, ge=1)

    def n_tokens(self, widest: int) -> int:
        """Tokens to ask for, where ``widest`` is the number of inputs of the widest map."""
        return self.tokens or max(FEWEST_TOKENS, TOKENS_PER_INPUT * widest)
