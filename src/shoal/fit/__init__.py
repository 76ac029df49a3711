"""Closed forms: new values for the linear maps of kept layers."""
