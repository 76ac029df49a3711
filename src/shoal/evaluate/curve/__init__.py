"""Curves: quality against the share of the model that was removed."""
