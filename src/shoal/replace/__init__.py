"""Modules that take the place of a removed span."""

from shoal.replace.attach import attach, new_attached, student_of, values_of
from shoal.replace.base import Replacement
from shoal.replace.table import REPLACEMENTS, replacement_named

__all__ = ["REPLACEMENTS", "Replacement", "attach", "new_attached", "replacement_named", "student_of", "values_of"]
