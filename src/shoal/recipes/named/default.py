"""The default: candidates of every score compete, each repaired in closed form; nothing is trained."""

from shoal.recipes.named_recipe import NamedRecipe
from shoal.recipes.recipe import Recipe

DEFAULT = NamedRecipe(
    Recipe(
        name="default",
        about="The best cuts of every criterion and of a greedy search compete, each repaired, by KL; then a closed-form sweep "
        "of the layers around the cut. Forward passes and linear solves only, no new parameters, a stock checkpoint.",
        papers=("2403.19135", "2403.17887"),
    ),
    chooses="best of several scores and of a greedy search; first and last layer stay",
    then="nothing; repair `auto`",
    text="yours",
)
