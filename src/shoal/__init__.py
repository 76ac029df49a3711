"""Shoal makes deep language models shallower: measure layers, remove the idle ones, repair the cut, measure the loss.

from shoal import compress

outcome = compress("default", "out", model="org/name", drop="25%")

The doors, each with a help of its own (``help(shoal.compress)``):

* ``compress(recipe, out, ...)``: measure, choose, cut, repair, save, evaluate.
* ``heal(student, out, ...)``: train what was cut, with its teacher or on text.
* ``load_recipe(name_or_path, changes)``: a recipe as a value, to look at or to change.
* ``compare_models(...)``: any models in one table.
* ``open_model(path)``: a model with its layers, for measurements of your own.
* ``Opening(device="cuda")``: where and how models are opened; ``compress(..., opening=Opening(device="cuda"))``.

Everything else is a verb of the command: ``shoal --help``, or ``!shoal --help`` in a notebook.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Opening", "compare_models", "compress", "heal", "load_recipe", "open_model"]


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
    if name == "heal":
        from shoal.run.healing.requested import heal

        return heal
    if name == "load_recipe":
        from shoal.recipes.recipe_file import load_recipe

        return load_recipe
    if name == "open_model":
        from shoal.engine.open import open_model

        return open_model
    hint = "" if name.startswith("_") else f"; it has {', '.join(__all__)}, and the rest are verbs of the command: shoal --help"
    raise AttributeError(f"module 'shoal' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """With the doors that are not imported yet, so that completion finds them."""
    return sorted({*globals(), *__all__})
