"""Shoal makes deep language models shallower: measure layers, remove the idle ones, repair the cut, measure the loss."""

__version__ = "0.1.0"
