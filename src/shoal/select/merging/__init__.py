"""Merging as a choice: which layers become one, by running what they would be."""
