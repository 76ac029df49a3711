"""One rule per file that divides a share of zeros among the maps of a model."""
