"""Training after the cut: a checkpoint in, a checkpoint out, step by step in a run folder."""
