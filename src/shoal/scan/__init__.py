"""The scan: one pass over calibration text, and tables of every span."""

from shoal.scan.anatomy import Anatomy
from shoal.scan.cka import CkaObserver
from shoal.scan.gram import GramObserver
from shoal.scan.scan import Scan, add_states, finish, scan
from shoal.scan.show import best_span, best_spans_table

__all__ = ["Anatomy", "CkaObserver", "GramObserver", "Scan", "add_states", "best_span", "best_spans_table", "finish", "scan"]
