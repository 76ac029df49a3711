"""Measures: what a span or a unit changes, and what a student loses."""
