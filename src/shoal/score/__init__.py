"""Scores: what a span or a unit is worth."""
