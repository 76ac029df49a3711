"""A cut as a checkpoint: in memory or file to file, saved whole or not at all, and always verified."""
