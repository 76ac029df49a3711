"""Shoal makes deep language models shallower: measure layers, remove the idle ones, repair the cut, measure the loss.

from shoal import compress

outcome = compress("default", "out", model="org/name", drop="25%")

With a card: ``compress(..., opening=Opening(device="cuda"))``.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Opening", "compare_models", "compress", "load_recipe", "open_model"]


def __getattr__(name: str) -> Any:
    """The library's front doors, imported on first use so that the command line starts without torch."""
    if name == "Opening":
        from shoal.engine.opening import Opening

        return Opening
    if name == "compare_models":
        from shoal.run.comparing import compare_models

        return compare_models
    if name == "compress":
        from shoal.run.compress import compress

        return compress
    if name == "load_recipe":
        from shoal.recipes.recipe_file import load_recipe

        return load_recipe
    if name == "open_model":
        from shoal.engine.open import open_model

        return open_model
    raise AttributeError(f"module 'shoal' has no attribute {name!r}")
