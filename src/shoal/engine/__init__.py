"""The engine: a decoder that can run any of its layers on any hidden states, wherever its weights are."""
