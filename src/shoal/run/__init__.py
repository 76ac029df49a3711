"""Stages in order, in one folder that can be resumed."""
