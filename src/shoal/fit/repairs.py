"""The closed-form repairs by name, how much text they read and how its tokens count. Plain data, free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shoal.words.records import Record

FEWEST_TOKENS = 200_000
TOKENS_PER_INPUT = 64

RepairName = Literal["none", "auto", "magnitude", "map", "bias", "refit", "sweep", "patch"]

REPAIRS: dict[RepairName, str] = {
    "none": "plain removal",
    "auto": "sweep where the family has an exact one, else the plain cut, said aloud",
    "magnitude": "one scale per cut, folded into the maps after it (Prune&Comp)",
    "map": "a linear map of the last kept MLP's output, folded into its down_proj or experts (ReplaceMe)",
    "bias": "the biases of the last kept layer, where the family has them",
    "refit": "the maps of the last kept layer before each cut",
    "sweep": "the maps of that layer, whose MLP takes the best neurons of the removed ones, and of every kept layer after it",
    "patch": "the replacement itself, with --replace linear, free, hadamard or rotation",
}
"""What every repair does, in one line; help and docs read it. :data:`shoal.fit.table.FITS` holds what they run."""


SOLVED_REPLACEMENTS = ("linear", "free", "hadamard", "rotation")
"""The replacements whose values have a closed form."""


class FitConfig(Record):
    """The closed-form repair.

    Attributes:
        tokens: of the ``training`` slice; None: 64 per input of the widest map, at least 200 k, or what the text holds.
        weights: of a token's squared miss: ``relative`` to its squared norm, or all alike (``plain``).
        sinks: tokens of 20 times the median norm are met ``exact``ly in the mean, or ``counted`` like all others.
        ridge: in units of the inputs' mean second moment; None: by cross-validation.
        keep: a solve stands ``if_better`` on the held-out samples, or ``always``, as the papers have it.
        hadamard: the scales of that replacement by ``least_squares``, or as LinearPatch's ``ratio`` of mean magnitudes.
    """

    tokens: int | None = Field(default=None, ge=1)
    weights: Literal["relative", "plain"] = "relative"
    sinks: Literal["exact", "counted"] = "exact"
    ridge: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    keep: Literal["if_better", "always"] = "if_better"
    hadamard: Literal["least_squares", "ratio"] = "least_squares"

    def n_tokens(self, widest: int) -> int:
        """Tokens to ask for, where ``widest`` is the number of inputs of the widest map."""
        return self.tokens or max(FEWEST_TOKENS, TOKENS_PER_INPUT * widest)
