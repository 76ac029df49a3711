"""The verb ``demo``."""

from pathlib import Path

from shoal.cli.compress import run_recipe
from shoal.cli.groups import MachineOptions, PlaceOptions, ResultOptions
from shoal.cli.options import OutOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import verb

DEMO_TOKENS, DEMO_HEAL_TOKENS = 40_000, 24_576
"""Of the repair and of the healing: with so many the demo takes about two minutes on two cores."""


@verb
def demo(
    result: ResultOptions,
    out: OutOption = Path("demo-run"),
) -> None:
    """Compress the bundled model by 25 % on the bundled text, offline."""
    from shoal.run.job import bundled_model

    chosen = with_options("default", model=str(bundled_model()), fit_tokens=DEMO_TOKENS, heal_tokens=DEMO_HEAL_TOKENS)
    run_recipe(chosen, out, MachineOptions(PlaceOptions(), resident="all"), result)
