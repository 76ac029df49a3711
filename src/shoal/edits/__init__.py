"""Edits: the changes that turn a teacher into a student."""
