"""Straight lines in weight space: what the loss does between two checkpoints, and on the way to a layer that is gone."""
