"""Weights set to zero: pruners, how a share is divided among maps, and the walk that applies them."""
