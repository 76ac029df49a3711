"""Text: documents from files or the hub, cut into four slices by content, as samples of token ids."""

from shoal.text.corpus import Corpus, bundled_text, open_corpus
from shoal.text.mixture import PRESETS, Mixture, parse_mixture
from shoal.text.samples import PACKINGS, Packing, Samples
from shoal.text.slices import SLICE_SHARES

__all__ = [
    "PACKINGS",
    "PRESETS",
    "SLICE_SHARES",
    "Corpus",
    "Mixture",
    "Packing",
    "Samples",
    "bundled_text",
    "open_corpus",
    "parse_mixture",
]
