"""One pruner per file: a pure function of a weight and of the sums over what its map reads."""
