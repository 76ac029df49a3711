"""What leaves a run besides the weights: the model card."""

from shoal.export.card import card, inherited_metadata

__all__ = ["card", "inherited_metadata"]
