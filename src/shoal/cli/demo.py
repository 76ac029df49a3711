"""The verb ``demo``."""

from pathlib import Path

from shoal.cli.compress import run_recipe
from shoal.cli.groups import MachineOptions, PlaceOptions, ResultOptions
from shoal.cli.options import OutOption
from shoal.cli.verb import verb

FEW = {"text": {"tokens": 2048}, "search": {"tokens": 512}, "fit": {"tokens": 2048}, "heal": {"tokens": 2048}}
"""As much text as shows what every step does: one to two minutes on two cores."""


@verb
def demo(
    result: ResultOptions,
    out: OutOption = Path("demo-run"),
) -> None:
    """Compress the bundled model by 25 % on the bundled text, offline."""
    from shoal.recipes.recipe_file import load_recipe
    from shoal.run.job import bundled_model

    chosen = load_recipe("default", {"model": str(bundled_model()), "guard": 3, **FEW})
    run_recipe(chosen, out, MachineOptions(PlaceOptions(), resident="all"), result)
