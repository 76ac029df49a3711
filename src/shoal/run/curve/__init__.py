"""Curves of quality against the removed share: methods compared point by point."""
