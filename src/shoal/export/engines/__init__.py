"""Engines that a file is proved in, each run in an interpreter of its own; the files ``run_*.py`` import nothing of Shoal."""
