"""What a growing is asked for: how deep, from what the new layers start, and where they stand. Plain data for recipes."""

import re
from fractions import Fraction

from pydantic import Field, field_validator

from shoal.edits.base import MOST_LAYERS
from shoal.edits.inits import INITS
from shoal.words.reading import shortened
from shoal.words.records import Record

SIZES = "40 (layers) or 150% (of the source's)"


class GrowConfig(Record):
    """New layers for a model.

    Attributes:
        to: layers of the result: a number, or percent of the source's, rounded.
        init: what new layers start as, an entry of :data:`shoal.edits.inits.INITS`.
        where: behind which layers, as :func:`shoal.select.places.inserts` reads it; None: where the init's paper puts them.
        cut: so many of the deepest layers go first (Llama SLayer removes the last ones and puts new ones in the first half).
    """

    to: str = "125%"
    init: str = "identity"
    where: str | None = Field(default=None, min_length=1)
    cut: int = Field(default=0, ge=0, le=MOST_LAYERS)

    @field_validator("to", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("to")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_depth(value, 1)
        return value

    @field_validator("init")
    @classmethod
    def _known(cls, value: str) -> str:
        return INITS.named(value).name


def parse_depth(to: str, n_layers: int) -> int:
    """How many layers ``to`` means for a source of ``n_layers``; halves are rounded down.

    Raises:
        ValueError: neither a number nor a percentage, or deeper than any model.
    """
    match = re.fullmatch(r"\s*([0-9]{1,18})\s*(%?)\s*", to)
    if match is None:
        raise ValueError(f"--to {shortened(to, 40)!r} is not a depth; write {SIZES}")
    depth = int(match[1]) if not match[2] else -int(-(Fraction(match[1]) / 100 * n_layers - Fraction(1, 2)) // 1)
    if depth > MOST_LAYERS:
        raise ValueError(f"--to {shortened(to, 40)} is deeper than any model; give at most {MOST_LAYERS:,} layers")
    return depth
