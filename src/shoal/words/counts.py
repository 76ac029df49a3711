"""Counts as people write them, ``20M`` tokens, ``1.5k`` or a plain number, and the largest that a recipe may ask for."""

import re
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, Field

from shoal.words.reading import shortened

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
"""Factors of the letters behind a number."""

_WRITTEN = re.compile(r"([0-9][0-9_,]{0,20}(?:\.[0-9]{1,20})?)\s*([kKmMbB]?)")


def parse_count(written: str) -> int:
    """The whole number that is written, such as ``20M``, ``1.5k``, ``32,768`` or ``1_000``.

    Raises:
        ValueError: not a positive whole number, with K, M or B behind it or without.
    """
    match = _WRITTEN.fullmatch(written.strip())
    value = Fraction(0) if match is None else Fraction(re.sub("[_,]", "", match[1])) * UNITS[match[2].upper()]
    if value < 1 or value.denominator != 1:
        raise ValueError(
            f"{shortened(written)!r} is not a number of tokens; write a whole number, or one with K, M or B, such as 20M"
        )
    return int(value)


def _as_count(value: object) -> object:
    return parse_count(value) if isinstance(value, str) else value


# No text, model or training is as large: a number above these is a slip, and memory or time would run out far below it.
MOST_TOKENS = 10**12
MOST_SAMPLES = MOST_STEPS = 10**9
MOST_LENGTH = 2**24

TokenCount = Annotated[int, Field(ge=1, le=MOST_TOKENS), BeforeValidator(_as_count)]
"""A number of tokens in a recipe: a whole number, or ``20M``."""

SampleCount = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
"""A number of samples in a recipe."""

StepCount = Annotated[int, Field(ge=1, le=MOST_STEPS)]
"""A number of optimiser steps, or of sets that a search runs."""

SeedNumber = Annotated[int, Field(ge=0, lt=2**32)]
"""What random numbers start from: as much as every library takes."""
