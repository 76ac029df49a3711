"""Modules that take the place of a removed span. The table is free of torch; what makes students is imported on first use."""

from typing import TYPE_CHECKING, Any

from shoal.edits.replace.contract import Replacement
from shoal.edits.replace.table import REPLACEMENTS, layers_absent, parse_replacement, replacement_named

if TYPE_CHECKING:
    from shoal.edits.student_of import attach, load_values, new_attached, student_of, values_of

__all__ = [
    "REPLACEMENTS",
    "Replacement",
    "attach",
    "layers_absent",
    "load_values",
    "new_attached",
    "parse_replacement",
    "replacement_named",
    "student_of",
    "values_of",
]


def __getattr__(name: str) -> Any:
    if name in ("attach", "load_values", "new_attached", "student_of", "values_of"):
        from shoal.edits import student_of as overlay

        return getattr(overlay, name)
    raise AttributeError(f"module 'shoal.edits.replace' has no attribute {name!r}")
