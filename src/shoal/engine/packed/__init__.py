"""Weights out of the blocks of quantisation methods, from the formula of each; no package of a method is needed."""
