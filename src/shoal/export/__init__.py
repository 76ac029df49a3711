"""What leaves a run besides the weights: the model card, and the headline that it shares with the report."""

from shoal.export.card import card, inherited_metadata
from shoal.export.headline import Fact, Headline, headline, source_name

__all__ = ["Fact", "Headline", "card", "headline", "inherited_metadata", "source_name"]
