"""What is set to zero, how it is chosen, and how it is divided. Plain data, free of torch, so that recipes load fast."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from pydantic import Field, model_validator

from shoal.prune.amount import MOST_SHARE, SparsePattern, parse_pattern
from shoal.prune.table import ALLOCATORS, PRUNERS
from shoal.words.records import Record
from shoal.words.yaml_text import parse_yaml

DEFAULT_SPARSITY = "50%"


class PruneConfig(Record):
    """Options of the stage ``prune``.

    Attributes:
        method: an entry of :data:`shoal.prune.table.PRUNERS`.
        sparsity: ``50%`` of the weights of all maps that are thinned, or ``35%all``: of all the source's parameters, those that
            are gone with a cut counted. None: what the pattern says, else 50 %.
        pattern: ``2:4``: of every four neighbouring inputs of an output two stay. None: anywhere.
        allocate: an entry of :data:`shoal.prune.table.ALLOCATORS`; a pattern has the same share everywhere.
        spread: half the range over which the shares of layers may differ (OWL's lambda).
        outlier: a weight counts as an outlier above that many times its layer's mean score (OWL's M).
    """

    method: str = "wanda"
    sparsity: str | None = None
    pattern: str | None = None
    allocate: str = "uniform"
    spread: float = Field(default=0.08, ge=0, le=0.5)
    outlier: float = Field(default=5.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _fits_together(self) -> PruneConfig:
        PRUNERS.named(self.method)
        ALLOCATORS.named(self.allocate)
        asked = None if self.sparsity is None else parse_sparsity(self.sparsity)
        if self.pattern is None:
            return self
        pattern = parse_pattern(self.pattern)
        if asked is not None and (asked[1] or asked[0] != Fraction(pattern.of - pattern.keep, pattern.of)):
            raise ValueError(
                f"pattern {pattern} is a sparsity of {100 * pattern.share:.4g}%, sparsity says {self.sparsity}; leave out one"
            )
        if self.allocate != "uniform":
            raise ValueError(
                f"pattern {pattern} fixes the share of every map, so allocate {self.allocate!r} has no say; leave it out"
            )
        return self

    def unread(self) -> Iterator[tuple[str, str]]:
        """Fields that nothing reads beside the others, each with the reason."""
        for name, rule in ALLOCATORS.items():
            for field in rule.options:
                if field not in ALLOCATORS.named(self.allocate).options:
                    yield field, f"it is read by allocate {name} alone, not by {self.allocate}"

    @property
    def reads_text(self) -> bool:
        """Whether anything runs; else zeros follow from the weights alone."""
        return PRUNERS.named(self.method).reads != "weights" or ALLOCATORS.named(self.allocate).reads == "inputs"

    @property
    def fixed_pattern(self) -> SparsePattern | None:
        return None if self.pattern is None else parse_pattern(self.pattern)

    def share(self, *, of_maps: int, parameters: int, before: int) -> float:
        """The share of zeros in the maps.

        Args:
            of_maps: weights of all maps that are thinned.
            parameters, before: of the student as it is cut, and of the source.
        Raises:
            ValueError: out of reach.
        """
        pattern = self.fixed_pattern
        if pattern is not None:
            return pattern.share
        asked, of_all = parse_sparsity(self.sparsity or DEFAULT_SPARSITY)
        if not of_all:
            return float(asked)
        target = asked * before - (before - parameters)
        reach = f"the maps hold {of_maps:,} of {before:,} parameters"
        if target <= 0:
            gone = (before - parameters) / before
            raise ValueError(f"sparsity {self.sparsity} is reached by the cut alone, which removes {gone:.1%}; ask for more")
        if target > Fraction(str(MOST_SHARE)) * of_maps:
            raise ValueError(f"sparsity {self.sparsity} needs {int(target):,} zeros, and {reach}; ask for less")
        return float(target / of_maps)


def parse_sparsity(text: str) -> tuple[Fraction, bool]:
    """``50%`` or ``35%all``: the share, and whether it is of all parameters of the source.

    Raises:
        ValueError: another form, or a share that is none.
    """
    match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*(all)?\s*", text)
    if match is None:
        raise ValueError(f"sparsity {text!r} is no share; write 50% (of the maps' weights), or 35%all (of all parameters)")
    share = Fraction(match[1]) / 100
    if not 0 < share <= Fraction(str(MOST_SHARE)):
        raise ValueError(f"sparsity {text!r} needs to be above 0% and at most {MOST_SHARE:.0%}")
    return share, bool(match[2])


def parse_prune(text: str) -> dict[str, Any] | None:
    """``none``, ``NAME`` or ``NAME:option=value,...`` as fields of a :class:`PruneConfig`; None for ``none``.

    Raises:
        ValueError: not of this form. Unknown names and options are refused by the record.
    """
    name, _, rest = text.strip().partition(":")
    fields: dict[str, Any] = {"method": name}
    for part in rest.split(",") if rest else ():
        option, equals, value = part.partition("=")
        if not equals or not option.strip() or not value.strip() or option.strip() in fields:
            raise ValueError(f"prune {text!r}: {part!r} is no option; write NAME:option=value,option=value")
        known = PruneConfig.model_fields.get(option.strip())
        is_text = known is None or known.annotation is not float
        fields[option.strip()] = value.strip() if is_text else parse_yaml(value, f"prune {text!r}")
    if name != "none":
        return fields
    if rest:
        raise ValueError(f"prune {text!r}: nothing is set to zero, so there are no options; write none")
    return None
